"""The modality benchmark: which way round do policies turn the T from starts that favour neither way?"""
