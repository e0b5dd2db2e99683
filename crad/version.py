"""The version of crad, as that of its distributions."""

VERSION = "0.1.0"
