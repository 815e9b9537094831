//! Every word of every table, as the kernel has them. What a segment has changed is a comparison,
//! whatever the tables mean.

use std::{fmt, os::fd::AsFd, path::Path, sync::atomic::Ordering};

use anyhow::{Context as _, Result};
use aya::maps::{ArrayOfMaps, Map, MapData, MapError, MapType};
use evenkeel::sys::memory::Table;

/// A map, mapped into this process.
struct Mapped {
    name: String,
    /// Which of the maps of this name; 0 for a map that is no inner one.
    position: u32,
    /// Words of one record.
    record: usize,
    words: Table<u64>,
}

/// All tables that the program may write, but the counters of reasons, the tokens of the limit on
/// RSTs and the ring of events.
pub struct Words(Vec<Mapped>);

/// The words of all tables at one moment.
pub struct Kept(Vec<Vec<u64>>);

/// A word that has changed.
#[derive(Clone)]
pub struct Change {
    /// The map.
    pub table: String,
    /// Which of the inner maps of this name.
    pub position: u32,
    /// The record.
    pub record: usize,
    /// The word's place in the record, in bytes.
    pub offset: usize,
    pub before: u64,
    pub after: u64,
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { table, position, record, offset, before, after } = self;
        write!(f, "{table}[{position}] record {record} byte {offset}: {before:#018x} is now {after:#018x}")
    }
}

impl Words {
    /// Maps everything that is pinned in `maps`. Of each array in SLOTS and OPENINGS only the first
    /// `slots` records are in use.
    pub fn open(maps: &Path, slots: u32) -> Result<Words> {
        let mut found = Vec::new();
        let mut entries: Vec<_> = std::fs::read_dir(maps)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let map = MapData::from_pin(entry.path()).with_context(|| format!("cannot open map {name}"))?;
            match map.info()?.map_type()? {
                MapType::Array => found.push(Mapped::new(&name, 0, &map, u32::MAX)?),
                MapType::ArrayOfMaps => {
                    let most = if name == "SLOTS" || name == "OPENINGS" { slots } else { u32::MAX };
                    found.extend(inner(&name, map, most)?);
                }
                _ => {}
            }
        }
        Ok(Words(found))
    }

    /// The words as they are now.
    pub fn keep(&self) -> Kept {
        Kept(self.0.iter().map(|map| map.all().collect()).collect())
    }

    /// The same, into a copy that was made before.
    pub fn keep_in(&self, kept: &mut Kept) {
        for (map, words) in self.0.iter().zip(&mut kept.0) {
            for (word, now) in words.iter_mut().zip(map.all()) {
                *word = now;
            }
        }
    }

    /// Puts all words back to what they were. No program may run meanwhile.
    pub fn restore(&self, kept: &Kept) {
        for (map, words) in self.0.iter().zip(&kept.0) {
            for (index, word) in words.iter().enumerate() {
                map.words.word64(index, 0).store(*word, Ordering::Release);
            }
        }
    }

    /// What has changed.
    pub fn changes(&self, kept: &Kept) -> Vec<Change> {
        let mut changes = Vec::new();
        for (map, words) in self.0.iter().zip(&kept.0) {
            for (index, (before, after)) in words.iter().zip(map.all()).enumerate() {
                if *before != after {
                    let (record, offset) = (index / map.record, index % map.record * 8);
                    let (table, position) = (map.name.clone(), map.position);
                    changes.push(Change { table, position, record, offset, before: *before, after });
                }
            }
        }
        changes
    }

    /// Changes the 32-bit number at byte `offset` of every record of a table. `change` is given
    /// the record's first word and the number.
    pub fn change(&self, table: &str, offset: usize, change: impl Fn(u64, u32) -> u32) {
        for map in self.0.iter().filter(|map| map.name == table) {
            for record in 0..map.words.len() / map.record {
                map.change(record, offset, &change);
            }
        }
    }

    /// The same for one record of the map at `position`.
    pub fn change_one(&self, table: &str, position: u32, record: u16, offset: usize, change: impl Fn(u32) -> u32) {
        for map in self.0.iter().filter(|map| map.name == table && map.position == position) {
            map.change(record.into(), offset, &|_, number| change(number));
        }
    }
}

impl Mapped {
    fn new(name: &str, position: u32, map: &MapData, most: u32) -> Result<Mapped> {
        let info = map.info()?;
        let record = info.value_size() as usize / 8;
        let records = info.max_entries().min(most) as usize;
        let words = Table::map(map.fd().as_fd(), records * record).with_context(|| format!("cannot map {name}"))?;
        Ok(Mapped { name: name.to_owned(), position, record, words })
    }

    fn change(&self, record: usize, offset: usize, change: &impl Fn(u64, u32) -> u32) {
        let first = self.words.word64(record * self.record, 0).load(Ordering::Acquire);
        let word = self.words.word32(record * self.record + offset / 8, offset % 8);
        word.store(change(first, word.load(Ordering::Acquire)), Ordering::Release);
    }

    fn all(&self) -> impl Iterator<Item = u64> {
        (0..self.words.len()).map(|index| self.words.word64(index, 0).load(Ordering::Relaxed))
    }
}

/// The maps in an array of maps.
fn inner(name: &str, map: MapData, most: u32) -> Result<Vec<Mapped>> {
    let count = map.info()?.max_entries();
    let array: ArrayOfMaps<MapData> = Map::from_map_data(map)?.try_into()?;
    let mut found = Vec::new();
    for position in 0..count {
        match array.get(&position, 0) {
            Ok(map) => found.push(Mapped::new(name, position, &map, most)?),
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot open {name}[{position}]")),
        }
    }
    Ok(found)
}
