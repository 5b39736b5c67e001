"""The modality benchmark: which way do policies turn the T from starts that favour neither?"""
