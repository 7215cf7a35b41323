"""The contract of the address stores, held against each of them."""
