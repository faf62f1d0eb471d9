"""Maps of patients and slides: build, write and read map files; the table of a cohort."""
