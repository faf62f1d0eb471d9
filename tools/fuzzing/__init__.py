"""What tools/fuzz.py is made of: how files are spoilt, and what reads them."""
