"""Maps: files with the probability and the CAM of each patch of a patient or slide."""
