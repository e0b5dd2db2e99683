"""Images that arrive in a folder: found once complete, recorded, and moved."""
