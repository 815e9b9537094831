//! RSTs that count, and RSTs that do not.
