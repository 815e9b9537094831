//! Loads the programs of an object with the verifier's whole log. aya's own loader asks for a log
//! only when the kernel refuses a program, so it makes the maps here, and the programs are loaded
//! by a call of our own.

use std::{
    collections::{HashMap, HashSet},
    ffi::CStr,
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use aya_obj::{
    Function, Object, ProgramSection,
    generated::{BPF_F_XDP_HAS_FRAGS, bpf_attach_type, bpf_attr, bpf_cmd, bpf_func_info, bpf_insn, bpf_prog_type},
};
use evenkeel::dataplane::{index_buckets, loader};
use lb_common::layout::Meta;
use nix::libc;

use super::code::{Part, parts};

/// A program of an object, and what the kernel said to it.
pub struct Loading {
    pub name: String,
    /// The program's instructions.
    pub length: usize,
    /// Its functions, by name.
    pub parts: Vec<(String, Part)>,
    pub verdict: Verdict,
}

/// A program as the kernel takes it.
pub struct Image<'a> {
    pub name: &'a str,
    pub section: &'a ProgramSection,
    pub license: &'a CStr,
    pub instructions: &'a [bpf_insn],
    /// BTF, and what it says of the functions and lines. Without it no function is global.
    pub types: Option<(BorrowedFd<'a>, &'a Function)>,
}

/// What the kernel said to a program.
pub struct Verdict {
    pub log: Vec<u8>,
    /// `None`: it was loaded.
    pub refusal: Option<io::Error>,
}

/// The longest log that the kernel writes. The memory is zero pages until the kernel writes there.
const LOG_BYTES: usize = (u32::MAX >> 2) as usize;
/// BPF_LOG_LEVEL2 | BPF_LOG_STATS: every instruction that is looked at, and the sums.
const LOG_LEVEL: u32 = 2 | 4;
/// As many connections as `max_connections` has by default.
const CONNECTIONS: u32 = 262_144;

/// Loads every program of the object, and lets go of it.
pub fn load(bytes: &[u8]) -> Result<Vec<Loading>> {
    let meta = Meta { layout: 0, seed: 1, buckets: index_buckets(CONNECTIONS), reserved: 0 };
    let maps = loader(&meta, &0).load(bytes).context("the kernel does not take the program's maps (root?)")?;
    let mut object = Object::parse(bytes).context("not an object with BPF programs")?;
    let features = aya::features().btf().context("the kernel has no BTF")?;
    let btf = object.fixup_and_sanitize_btf(features)?.context("the object has no BTF")?.to_bytes();
    let btf = load_btf(&btf).context("the kernel does not take the object's BTF")?;
    let names = object.functions.values().filter_map(|function| Some((first_type(function)?, short(&function.name))));
    let names: HashMap<u32, String> = names.collect();
    link(&mut object, &maps)?;
    let mut programs: Vec<_> = object.programs.iter().collect();
    programs.sort_by_key(|(name, _)| *name);
    let load = |(name, program): (&String, &aya_obj::Program)| {
        let function = &object.functions[&program.function_key()];
        let verdict = verify(&Image {
            name,
            section: &program.section,
            license: &program.license,
            instructions: &function.instructions,
            types: Some((btf.as_fd(), function)),
        })?;
        let length = function.instructions.len();
        Ok(Loading { name: name.clone(), length, parts: named_parts(function, &names), verdict })
    };
    programs.into_iter().map(load).collect()
}

fn first_type(function: &Function) -> Option<u32> {
    Some(function.func_info.func_info.first()?.type_id)
}

/// A function's name without crate and modules: `saved_syn::<XdpFrame>`.
fn short(symbol: &str) -> String {
    let path = format!("{:#}", rustc_demangle::demangle(symbol));
    let of_type = |path: &str| path.rsplit("::").next().unwrap_or_default().to_owned();
    match path.strip_suffix('>').and_then(|path| path.split_once("::<")) {
        Some((function, argument)) => format!("{}::<{}>", of_type(function), of_type(argument)),
        None => of_type(&path),
    }
}

/// Puts the maps' descriptors and the called functions into the programs, as aya does.
fn link(object: &mut Object, maps: &Ebpf) -> Result<()> {
    let shapes = mem::take(&mut object.maps);
    let found = shapes.iter().map(|(name, shape)| {
        let map = maps.map(name).with_context(|| format!("there is no map {name}"))?;
        Ok((name.as_str(), data(map)?.fd().as_fd().as_raw_fd(), shape))
    });
    let found: Vec<_> = found.collect::<Result<_>>()?;
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(found.into_iter(), &sections)?;
    object.relocate_calls(&sections)?;
    object.sanitize_functions(aya::features());
    Ok(())
}

fn data(map: &Map) -> Result<&MapData> {
    Ok(match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => data,
        _ => bail!("the object has a map of a kind that the lab does not know: {map:?}"),
    })
}

/// The functions of a linked program, by name.
fn named_parts(function: &Function, names: &HashMap<u32, String>) -> Vec<(String, Part)> {
    let infos = &function.func_info.func_info;
    let starts: Vec<usize> = infos.iter().map(|info| info.insn_off as usize).collect();
    let name = |info: &bpf_func_info| names.get(&info.type_id).cloned().unwrap_or_default();
    infos.iter().map(name).zip(parts(&starts, &function.instructions)).collect()
}

fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: integers only, for which zeros are valid.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the command below reads this member.
    let wanted = unsafe { &mut attributes.__bindgen_anon_7 };
    wanted.btf = bytes.as_ptr() as u64;
    wanted.btf_size = bytes.len() as u32;
    // SAFETY: the BTF lives through the call, and the kernel only reads it.
    unsafe { bpf(bpf_cmd::BPF_BTF_LOAD, &mut attributes) }
}

/// Loads a program with the verifier's whole log, and lets go of it.
pub fn verify(image: &Image<'_>) -> Result<Verdict> {
    let Image { name, section, license, instructions, types } = image;
    let mut log = vec![0; LOG_BYTES];
    // SAFETY: integers only, for which zeros are valid.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the command below reads this member.
    let wanted = unsafe { &mut attributes.__bindgen_anon_3 };
    match section {
        ProgramSection::Xdp { frags, .. } => {
            wanted.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
            wanted.expected_attach_type = bpf_attach_type::BPF_XDP as u32;
            wanted.prog_flags = if *frags { BPF_F_XDP_HAS_FRAGS } else { 0 };
        }
        ProgramSection::SchedClassifier => wanted.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32,
        _ => bail!("the program {name} is of a kind that the lab does not know"),
    }
    for (to, from) in wanted.prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    wanted.insns = instructions.as_ptr() as u64;
    wanted.insn_cnt = instructions.len() as u32;
    wanted.license = license.as_ptr() as u64;
    let (mut functions, mut lines) = (Vec::new(), Vec::new());
    if let Some((btf, function)) = types {
        functions = function.func_info.func_info_bytes();
        lines = function.line_info.line_info_bytes();
        wanted.prog_btf_fd = btf.as_raw_fd() as u32;
        wanted.func_info_cnt = function.func_info.len() as u32;
        wanted.func_info_rec_size = function.func_info_rec_size as u32;
        wanted.line_info_cnt = function.line_info.len() as u32;
        wanted.line_info_rec_size = function.line_info_rec_size as u32;
    }
    wanted.func_info = functions.as_ptr() as u64;
    wanted.line_info = lines.as_ptr() as u64;
    wanted.log_level = LOG_LEVEL;
    wanted.log_buf = log.as_mut_ptr() as u64;
    wanted.log_size = log.len() as u32;
    // SAFETY: all that is pointed to lives through the call; the kernel writes at most `log_size`
    // bytes to the log, which is that long, and reads the rest by the counts beside it.
    let refusal = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) }.err();
    if refusal.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::ENOSPC)) {
        bail!("the verifier's log of {name} is longer than {LOG_BYTES} bytes, and no kernel writes more");
    }
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    log.truncate(end);
    Ok(Verdict { log, refusal })
}

/// A command of `bpf(2)` that returns a descriptor.
///
/// # Safety
/// What the attributes point to must be as long as they say, and must live through the call.
unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the attributes live through the call and have the size that is passed; for what they
    // point to, the caller vouches.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command as u32, &raw mut *attributes, size_of::<bpf_attr>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just opened, owned by nothing else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
