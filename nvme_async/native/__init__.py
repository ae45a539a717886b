"""The compiled modules (built from ext/). Raw pointers exist only there."""
