"""The tour: two hospitals, one enclave, and an operator who tries everything."""
