//! The XDP program that the far end of a veth pair needs.
//!
//! A frame that native XDP turns around or redirects into a veth arrives only if the other end runs
//! an XDP program too. Two instructions are enough: `r0 = XDP_PASS; exit`.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

use crate::Host;

pub const XDP_PASS: i32 = 2;
const SECTION: &str = "xdp";

/// Attaches it to a device of a host, in driver mode.
pub fn attach(host: &Host, device: &str) -> Result<()> {
    let file = host.folder().join("xdp_pass.o");
    if !file.exists() {
        write(&file, SECTION, "pass", XDP_PASS)?;
    }
    let file = file.to_str().context("the lab's folder is not UTF-8")?;
    host.ip(&["link", "set", "dev", device, "xdpdrv", "obj", file, "sec", SECTION]).map(drop)
}

/// Writes a program to a file: `mov r0, verdict` and `exit`.
pub fn write(file: &Path, section: &str, name: &str, verdict: i32) -> Result<()> {
    let mut program = vec![0xb7, 0, 0, 0];
    program.extend(verdict.to_le_bytes());
    program.extend([0x95, 0, 0, 0, 0, 0, 0, 0]);
    let mut elf = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let code = elf.add_section(Vec::new(), section.into(), SectionKind::Text);
    elf.append_section_data(code, &program, 8);
    elf.add_symbol(Symbol {
        name: name.into(),
        value: 0,
        size: program.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(code),
        flags: SymbolFlags::None,
    });
    let license = elf.add_section(Vec::new(), b"license".into(), SectionKind::Data);
    elf.append_section_data(license, b"GPL\0", 1);
    fs::write(file, elf.write()?).with_context(|| file.display().to_string())
}
