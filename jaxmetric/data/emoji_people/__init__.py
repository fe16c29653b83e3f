"""The embedded images (`emoji_people.npz`), their licenses, and `make`, the script that made them."""
