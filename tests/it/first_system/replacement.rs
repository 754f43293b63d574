//! The first system is replaced while it runs.
