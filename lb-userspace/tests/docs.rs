//! What the documentation lists is what the program has: configuration keys and their defaults,
//! commands and options, reasons, memory, what `check` prints; and links lead somewhere.

mod docs {
    pub mod commands;
    pub mod configuration;
    pub mod links;
    pub mod page;
    pub mod sizes;
}
