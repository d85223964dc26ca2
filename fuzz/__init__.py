"""Any bytes at a parser give a value or one error of the documented tree."""
