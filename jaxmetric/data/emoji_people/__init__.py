"""The embedded pictures (`emoji_people.npz`), their licences, and `make`, the script that made them."""
