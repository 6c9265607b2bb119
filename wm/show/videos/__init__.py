"""Videos of drives and dreams."""
