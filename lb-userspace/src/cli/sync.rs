//! Flow sync in `status`.

use std::fmt::Write;

use Column::{Left, Right};
use comfy_table::{Cell, Color};

use super::{
    args::Format,
    table::{Column, Style, Table, coloured},
};
use crate::{
    api::types::{SyncPeer, SyncStatus},
    client::units,
    words::SyncState,
};

/// The peers, and the addresses this host sends connections for.
pub fn status(sync: &SyncStatus, format: Format, style: Style) -> String {
    let mut columns = vec![
        Left("FLOW SYNC"),
        Left("STATE"),
        Left("HEARD"),
        Right("WAITING"),
        Right("LAG"),
        Right("LOST"),
        Right("SENT"),
        Right("RECEIVED"),
    ];
    let wide = format == Format::Wide;
    if wide {
        columns.extend([Left("VERSION"), Right("COPIES SENT"), Right("COPIES"), Right("CONFLICTS"), Right("UNKNOWN")]);
        columns.extend([Right("REFUSED"), Right("DROPPED")]);
    }
    let mut table = Table::new(&columns, style);
    sync.peers.iter().for_each(|peer| table.row(row(peer, wide)));
    let mut text = table.lines();
    let sends: Vec<_> = sync.master_of.iter().map(ToString::to_string).collect();
    // Writing to a String cannot fail.
    let _ = match sends.is_empty() {
        true => writeln!(text, "this host holds no listen address: it receives their connections"),
        false => writeln!(text, "this host holds {}: it sends their connections", sends.join(", ")),
    };
    if let Some(error) = &sync.error {
        let _ = writeln!(text, "{error}");
    }
    text
}

fn row(peer: &SyncPeer, wide: bool) -> Vec<Cell> {
    let colour = match peer.state {
        SyncState::Synced => Color::Green,
        SyncState::Lost => Color::Red,
        SyncState::Connecting | SyncState::Copying => Color::Yellow,
    };
    let ago = |ms: u64| format!("{} ago", units::milliseconds(Some(ms as f64)));
    let counts = &peer.counts;
    let mut row = vec![
        Cell::new(peer.address),
        coloured(&peer.state.to_string(), colour),
        Cell::new(peer.silent_ms.map_or("-".into(), ago)),
        Cell::new(peer.waiting),
        Cell::new(units::milliseconds(Some(peer.lag_ms as f64))),
        Cell::new(counts.lost),
        Cell::new(counts.flows_sent),
        Cell::new(counts.flows_received),
    ];
    if wide {
        let version = if peer.version.is_empty() { "-" } else { &peer.version };
        row.push(Cell::new(version));
        row.extend([counts.copies_sent, counts.copies_received, counts.conflicts, counts.unknown].map(Cell::new));
        row.extend([counts.refused.total(), counts.dropped].map(Cell::new));
    }
    row
}
