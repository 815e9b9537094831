//! Loads the programs of an object with the verifier's whole log. aya's own loader asks for a log
//! only when the kernel refuses a program, so it makes the maps here, and the programs are loaded
//! by a call of our own.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
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
    generated::{BPF_F_XDP_HAS_FRAGS, bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type},
};
use evenkeel::dataplane::{index_buckets, loader};
use lb_common::layout::Meta;
use nix::libc;

/// What the kernel did with one program.
pub struct Verification {
    pub name: String,
    /// The program's instructions.
    pub length: usize,
    pub parts: Vec<Part>,
    pub log: Vec<u8>,
    pub refusal: Option<io::Error>,
}

/// A function of a program.
pub struct Part {
    pub name: String,
    /// Its first instruction.
    pub start: usize,
    pub calls: Vec<usize>,
}

/// The longest log that the kernel writes. The memory is zero pages until the kernel writes there.
const LOG_BYTES: usize = (u32::MAX >> 2) as usize;
/// BPF_LOG_LEVEL2 | BPF_LOG_STATS: every instruction that is looked at, and the sums.
const LOG_LEVEL: u32 = 2 | 4;
/// As many connections as `max_connections` has by default.
const CONNECTIONS: u32 = 262_144;

/// Loads every program of the object, and lets go of it.
pub fn load(bytes: &[u8]) -> Result<Vec<Verification>> {
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
        let (log, loaded) = load_program(name, program, function, btf.as_fd())?;
        Ok(Verification {
            name: name.clone(),
            length: function.instructions.len(),
            parts: parts(function, &names),
            log,
            refusal: loaded.err(),
        })
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
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => data,
        _ => bail!("the object has a map of a kind that the lab does not know: {map:?}"),
    })
}

/// The functions of a linked program. The kernel numbers them in this order.
fn parts(function: &Function, names: &HashMap<u32, String>) -> Vec<Part> {
    let starts: Vec<usize> = function.func_info.func_info.iter().map(|info| info.insn_off as usize).collect();
    let part = |(number, info): (usize, &aya_obj::generated::bpf_func_info)| {
        let start = starts[number];
        let end = starts.get(number + 1).copied().unwrap_or(function.instructions.len());
        let callees = (start..end).filter_map(|at| callee(at, &function.instructions[at]));
        let calls: BTreeSet<usize> = callees.filter_map(|at| starts.binary_search(&at).ok()).collect();
        let name = names.get(&info.type_id).cloned().unwrap_or_else(|| format!("func#{number}"));
        Part { name, start, calls: calls.into_iter().collect() }
    };
    function.func_info.func_info.iter().enumerate().map(part).collect()
}

/// Where an instruction calls, if it calls a function of the program.
fn callee(at: usize, instruction: &bpf_insn) -> Option<usize> {
    const CALL: u8 = 0x85;
    const PSEUDO_CALL: u8 = 1;
    let is_call = instruction.code == CALL && instruction.src_reg() == PSEUDO_CALL;
    is_call.then(|| (at + 1).wrapping_add_signed(instruction.imm as isize))
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

/// The log, and whether the program was loaded.
fn load_program(
    name: &str,
    program: &aya_obj::Program,
    function: &Function,
    btf: BorrowedFd<'_>,
) -> Result<(Vec<u8>, io::Result<OwnedFd>)> {
    let mut log = vec![0; LOG_BYTES];
    let (functions, lines) = (function.func_info.func_info_bytes(), function.line_info.line_info_bytes());
    // SAFETY: integers only, for which zeros are valid.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the command below reads this member.
    let wanted = unsafe { &mut attributes.__bindgen_anon_3 };
    match program.section {
        ProgramSection::Xdp { frags, .. } => {
            wanted.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
            wanted.expected_attach_type = bpf_attach_type::BPF_XDP as u32;
            wanted.prog_flags = if frags { BPF_F_XDP_HAS_FRAGS } else { 0 };
        }
        ProgramSection::SchedClassifier => wanted.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32,
        _ => bail!("the object has a program {name} of a kind that the lab does not know"),
    }
    for (to, from) in wanted.prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    wanted.insns = function.instructions.as_ptr() as u64;
    wanted.insn_cnt = function.instructions.len() as u32;
    wanted.license = program.license.as_ptr() as u64;
    wanted.prog_btf_fd = btf.as_raw_fd() as u32;
    wanted.func_info = functions.as_ptr() as u64;
    wanted.func_info_cnt = function.func_info.len() as u32;
    wanted.func_info_rec_size = function.func_info_rec_size as u32;
    wanted.line_info = lines.as_ptr() as u64;
    wanted.line_info_cnt = function.line_info.len() as u32;
    wanted.line_info_rec_size = function.line_info_rec_size as u32;
    wanted.log_level = LOG_LEVEL;
    wanted.log_buf = log.as_mut_ptr() as u64;
    wanted.log_size = log.len() as u32;
    // SAFETY: all that is pointed to lives through the call; the kernel writes at most `log_size`
    // bytes to the log, which is that long, and reads the rest.
    let loaded = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) };
    if loaded.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOSPC)) {
        bail!("the verifier's log of {name} is longer than {LOG_BYTES} bytes, which no kernel writes");
    }
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    log.truncate(end);
    Ok((log, loaded))
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
