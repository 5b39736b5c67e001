"""Policies by composition: a path, a network, an observer, and normalisers on either side."""

from immiscible_policy.policy.build import PolicySpec, build_policy
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.observer import ImageObserver, NumberObserver, Pictured
from immiscible_policy.policy.policy import Policy
