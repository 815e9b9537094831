//! RSTs.
