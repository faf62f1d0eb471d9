"""The report: a page a patient and one for the cohort, each a single file that needs no network."""
