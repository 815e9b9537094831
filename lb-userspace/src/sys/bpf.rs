//! The BPF commands that aya lacks, or does not offer in the form needed here.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// `union bpf_attr` for BPF_MAP_DELETE_ELEM (linux/bpf.h): the part that the command reads.
#[repr(C)]
struct DeleteElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const BPF_MAP_DELETE_ELEM: libc::c_int = 3;

/// Removes the inner map at `index` from an array of maps; its memory is freed once nothing refers
/// to it.
pub fn delete_inner_map(array_of_maps: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let attributes = DeleteElement {
        map_fd: array_of_maps.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const index) as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: the attributes and the key they point to live through the call; the kernel reads
    // `size_of` bytes and writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_DELETE_ELEM, &raw const attributes, size_of::<DeleteElement>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The part of `union bpf_attr` for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct UpdateElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for BPF_MAP_UPDATE_BATCH.
#[repr(C)]
struct UpdateBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;

/// Puts inner maps into an array of maps, from index `first` on. Every command waits until no
/// program still uses the previous map (RCU), so several maps go in one batch command where the
/// kernel has it (5.19).
pub fn set_inner_maps(array_of_maps: BorrowedFd<'_>, first: u32, maps: &[BorrowedFd<'_>]) -> io::Result<()> {
    let map_fd = array_of_maps.as_raw_fd() as u32;
    let values: Vec<u32> = maps.iter().map(|map| map.as_raw_fd() as u32).collect();
    let keys: Vec<u32> = (first..).take(values.len()).collect();
    if let [_, _, ..] = &values[..] {
        let mut batch = UpdateBatch {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: values.len() as u32,
            map_fd,
            element_flags: 0,
            flags: 0,
        };
        let size = size_of::<UpdateBatch>();
        // SAFETY: keys and values live through the call and are `count` each; the kernel writes
        // `count` back.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_BATCH, &raw mut batch, size) };
        if result == 0 {
            return Ok(());
        }
    }
    for (key, value) in keys.iter().zip(&values) {
        let attributes = UpdateElement {
            map_fd,
            padding: 0,
            key: std::ptr::from_ref(key) as u64,
            value: std::ptr::from_ref(value) as u64,
            flags: 0,
        };
        let size = size_of::<UpdateElement>();
        // SAFETY: the attributes, key and value live through the call; the kernel writes nothing.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw const attributes, size) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The part of `union bpf_attr` for BPF_OBJ_GET.
#[repr(C)]
struct ObjectGet {
    path: u64,
    fd: u32,
    flags: u32,
}

const BPF_OBJ_GET: libc::c_int = 7;

/// The part of `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// The beginning of `struct bpf_link_info`, as XDP and tcx links fill it.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    ifindex: u32,
    rest: [u32; 3],
}

/// What a pinned XDP or tcx link connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// The program's ID.
    pub program: u32,
    /// The interface's index; 0: the link was detached from outside, or the interface is gone.
    pub ifindex: u32,
}

/// Reads the state of a pinned link.
pub fn pinned_link(path: &Path) -> io::Result<LinkState> {
    let link = open_pin(path)?;
    let mut info = LinkInfo::default();
    let mut attributes =
        InfoByFd { fd: link.as_raw_fd() as u32, length: size_of::<LinkInfo>() as u32, info: (&raw mut info) as u64 };
    let size = size_of::<InfoByFd>();
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is that long, and writes
    // the length back; both live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attributes, size) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(LinkState { program: info.program, ifindex: info.ifindex })
}

/// The part of `union bpf_attr` for BPF_PROG_QUERY.
#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_attach_flags: u64,
    links: u64,
    link_attach_flags: u64,
    revision: u64,
}

const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// `BPF_MPROG_MAX` (linux/bpf_mprog.h).
const MOST_PROGRAMS: usize = 64;

/// The IDs of the programs that stand on an interface by tcx, in the order in which they see a
/// frame; none where the kernel has no tcx (before 6.6). `None`: there is no such interface.
pub fn tcx_programs(ifindex: u32, outward: bool) -> io::Result<Option<Vec<u32>>> {
    let mut programs = [0_u32; MOST_PROGRAMS];
    let mut query = Query {
        ifindex,
        attach_type: if outward { BPF_TCX_EGRESS } else { BPF_TCX_INGRESS },
        programs: programs.as_mut_ptr() as u64,
        count: MOST_PROGRAMS as u32,
        ..Query::default()
    };
    let size = size_of::<Query>();
    // SAFETY: the kernel writes at most `count` numbers to `programs`, which has as many, and some
    // words of `query`; both live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size) };
    if result == 0 {
        return Ok(Some(programs.into_iter().take(query.count as usize).collect()));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // EINVAL: no tcx. ENOENT: nothing is attached.
        Some(libc::EINVAL | libc::ENOENT) => Ok(Some(Vec::new())),
        Some(libc::ENODEV) => Ok(None),
        _ => Err(error),
    }
}

/// The part of `union bpf_attr` for BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
struct GetById {
    id: u32,
    next: u32,
    flags: u32,
}

const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    unused: [u64; 7],
    name: [u8; 16],
}

const _: () = assert!(std::mem::offset_of!(ProgramInfo, name) == 64 && size_of::<ProgramInfo>() == 80);

/// The name of a program, at most 15 bytes of it.
pub fn program_name(id: u32) -> io::Result<String> {
    let get = GetById { id, next: 0, flags: 0 };
    // SAFETY: the attributes live through the call; the kernel writes nothing.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_GET_FD_BY_ID, &raw const get, size_of::<GetById>()) };
    Ok(program_info(owned(fd)?)?.name())
}

/// The ID of a pinned program.
pub fn pinned_program(path: &Path) -> io::Result<u32> {
    Ok(program_info(open_pin(path)?)?.id)
}

impl ProgramInfo {
    fn name(&self) -> String {
        let bytes = self.name.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }
}

fn program_info(program: OwnedFd) -> io::Result<ProgramInfo> {
    let mut info = ProgramInfo::default();
    let length = size_of::<ProgramInfo>() as u32;
    let mut attributes = InfoByFd { fd: program.as_raw_fd() as u32, length, info: (&raw mut info) as u64 };
    let size = size_of::<InfoByFd>();
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is that long, and writes
    // the length back; both live through the call. It reads the lengths and places of longer answers
    // from `info`: they are zero, so it gives none.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attributes, size) };
    if result == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let get = ObjectGet { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the attributes and the path they point to live through the call; the kernel writes
    // nothing.
    owned(unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const get, size_of::<ObjectGet>()) })
}

/// A descriptor that a system call has just returned.
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nothing else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The part of `union bpf_attr` for BPF_MAP_CREATE (linux/bpf.h) that an array needs.
#[repr(C)]
#[derive(Default)]
struct CreateMap {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
}

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;

/// Creates an array of `entries` values of `value_size` bytes. `name` is cut to 15 bytes.
pub fn create_array(name: &str, value_size: u32, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = CreateMap {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size,
        max_entries: entries,
        map_flags: flags,
        ..CreateMap::default()
    };
    for (to, from) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    create_map(&attributes)
}

/// Creates a ring buffer of `bytes`: a power of two, in whole pages.
pub fn create_ring_buffer(bytes: u32) -> io::Result<OwnedFd> {
    create_map(&CreateMap { map_type: BPF_MAP_TYPE_RINGBUF, max_entries: bytes, ..CreateMap::default() })
}

fn create_map(attributes: &CreateMap) -> io::Result<OwnedFd> {
    let size = size_of::<CreateMap>();
    // SAFETY: the attributes live through the call; the kernel reads `size_of` bytes and writes
    // nothing.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, std::ptr::from_ref(attributes), size) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just opened, owned by nothing else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The part of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct LoadProgram {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
/// `BPF_PROG_TYPE_SCHED_CLS`.
pub const TC: u32 = 3;
/// `BPF_PROG_TYPE_XDP`.
pub const XDP: u32 = 6;

/// What the verifier says of a program of few instructions that it refuses.
#[derive(Debug)]
pub struct NotTaken {
    pub error: io::Error,
    pub log: String,
}

/// Loads a program of few instructions, to find out whether the kernel takes it. `kind`: [`TC`] or
/// [`XDP`].
pub fn load_program(kind: u32, instructions: &[u64]) -> Result<OwnedFd, NotTaken> {
    let mut log = vec![0_u8; 4096];
    let attributes = LoadProgram {
        kind,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: instructions and license live through the call, the former `count` long; the kernel
    // writes at most `log_size` bytes to the log, which is that long.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<LoadProgram>()) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        log.truncate(log.iter().position(|byte| *byte == 0).unwrap_or(log.len()));
        return Err(NotTaken { error, log: String::from_utf8_lossy(&log).into_owned() });
    }
    // SAFETY: a descriptor just opened, owned by nothing else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The part of `union bpf_attr` for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
}

const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// Runs a program once on a frame, as if it had come in as `context` says.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], context: &[u8]) -> io::Result<()> {
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        context_size_in: context.len() as u32,
        context_in: context.as_ptr() as u64,
        ..TestRun::default()
    };
    let size = size_of::<TestRun>();
    // SAFETY: frame and context live through the call and are as long as their sizes say; there is
    // no room for output, and the kernel writes only to the attributes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
