//! The budget of the kernel program: docs/ebpf.md says why these numbers, and what to do when a
//! test here fails. Everything is measured on the machine's own kernel, but the stack is counted as
//! on the kernels that count most.
//!
//! No test loads the programs with the JIT off. There is only `net.core.bpf_jit_enable`, which
//! belongs to the whole machine: it exists in the initial network namespace alone, and no flag of
//! `BPF_PROG_LOAD` is like it. What such a kernel would do is counted here
//! ([`Rounding::Interpreted`]), and tried by `cargo xtask kernels`.

use std::sync::LazyLock;

use aya_obj::{ProgramSection, generated::bpf_insn, programs::XdpAttachType};
use lab::verified::{
    Function, Image, Program,
    budget::{PASS, STACK},
    chains::{self, Chain, FRAMES, Rounding, deepest, longest},
    code::parts,
    measure, names, verify,
};

/// Instructions that the verifier looks at in a program, of the kernel's 1,000,000. 400,000 are the
/// bound on the kernel that needs most; others differ in how much they can prune.
const PROGRAM: u32 = 150_000;

static PROGRAMS: LazyLock<Vec<Program>> =
    LazyLock::new(|| measure(evenkeel::dataplane::OBJECT).expect("the programs are loaded, as root"));

#[test]
fn the_kernel_takes_every_program() {
    assert_eq!(
        PROGRAMS.iter().map(|program| program.name.as_str()).collect::<Vec<_>>(),
        ["evenkeel_out", "evenkeel_tc", "evenkeel_xdp"]
    );
    for Program { name, refusal, .. } in &*PROGRAMS {
        assert_eq!(refusal, &None, "{name}: `evenkeel-lab verified` shows what it needs");
    }
}

#[test]
fn the_verifier_needs_few_instructions() {
    for Program { name, instructions, .. } in &*PROGRAMS {
        println!("{name}: {instructions} instructions looked at, bound {PROGRAM}");
        assert!(
            (1..=PROGRAM).contains(instructions),
            "{name}: the verifier looks at {instructions} instructions, the bound is {PROGRAM}. `evenkeel-lab verified` \
             shows them by function: make a loop or a choice a global function of numbers, or hide a number that is \
             known on every path (maps::forgotten)"
        );
    }
}

#[test]
fn no_function_keeps_the_verifier_for_long() {
    for program in &*PROGRAMS {
        for Function { name, pass, .. } in &program.functions {
            let pass = pass.unwrap_or(0);
            assert!(
                pass < PASS,
                "{}: the verifier looks at {pass} instructions in {name} and the static functions that it calls, the \
                 bound is {PASS}: split it into global functions of numbers, or hide a number that is known on every \
                 path (maps::forgotten)",
                program.name
            );
        }
    }
}

#[test]
fn the_deepest_chain_of_calls_leaves_room_where_frames_are_rounded_up_to_32_bytes() {
    for program in &*PROGRAMS {
        let chain = program.deepest(Rounding::Interpreted);
        println!("{}: {} bytes of stack, bound {STACK}: {}", program.name, chain.bytes, names(program, &chain));
        assert!(
            chain.bytes <= STACK,
            "{}: the deepest chain of calls takes {} bytes of stack where every frame is rounded up to 32, the bound is \
             {STACK}: {}. Fewer calls below one another, smaller frames in the largest of them, or a choice that is \
             made before the chain begins",
            program.name,
            chain.bytes,
            names(program, &chain)
        );
    }
}

#[test]
fn no_chain_of_calls_has_more_frames_than_the_kernel_takes() {
    for program in &*PROGRAMS {
        let chain = program.longest();
        assert!(
            chain.functions.len() <= FRAMES,
            "{}: {} frames, the kernel takes {FRAMES}: {}. The walk itself, and not a function below it, has to make \
             the last call",
            program.name,
            chain.functions.len(),
            names(program, &chain)
        );
    }
}

#[test]
fn the_counts_of_the_functions_add_up_to_what_the_kernel_counts() {
    for Program { name, instructions, functions, .. } in &*PROGRAMS {
        assert_eq!(functions.iter().map(|function| function.instructions).sum::<u32>(), *instructions, "{name}");
        assert_eq!(functions.iter().filter_map(|function| function.pass).sum::<u32>(), *instructions, "{name}");
    }
}

/// So the instructions say enough of the functions to which only older kernels come.
#[test]
fn the_instructions_of_a_function_have_all_the_stack_that_the_verifier_finds() {
    for program in &*PROGRAMS {
        for Function { name, instructions, frame, verified_frame, .. } in &program.functions {
            assert_eq!(verified_frame.is_some(), *instructions > 0, "{}: {name}", program.name);
            assert!(
                verified_frame.unwrap_or(0) <= *frame,
                "{}: {name}: {frame} bytes by its instructions, {verified_frame:?} by the verifier",
                program.name
            );
        }
    }
}

/// `*(u64 *)(r10 - FRAME) = 0; call NEXT; r0 = 0; exit` for each frame; the last calls nothing.
fn chain_of(frames: &[u32]) -> (Vec<bpf_insn>, Vec<Function>) {
    let instruction = |code, to, from, off, imm| {
        let registers = bpf_insn::new_bitfield_1(to, from);
        bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off, imm }
    };
    let (mut program, mut starts) = (Vec::new(), Vec::new());
    for (number, frame) in frames.iter().enumerate() {
        starts.push(program.len());
        program.push(instruction(0x7a, 10, 0, -(*frame as i16), 0));
        if number + 1 < frames.len() {
            program.push(instruction(0x85, 0, 1, 0, 2));
        }
        program.extend([instruction(0xb7, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)]);
    }
    let function = |part: lab::verified::code::Part| Function {
        name: String::new(),
        instructions: part.code.len() as u32,
        pass: None,
        frame: part.frame,
        verified_frame: None,
        calls: part.calls,
    };
    let functions = parts(&starts, &program).into_iter().map(function).collect();
    (program, functions)
}

/// What the kernel says of an XDP program, and whether it takes it.
fn verdict(program: &[bpf_insn]) -> (String, bool) {
    let section = ProgramSection::Xdp { frags: false, attach_type: XdpAttachType::Interface };
    let image = Image { name: "chain", section: &section, license: c"GPL", instructions: program, types: None };
    let verdict = verify(&image).expect("the kernel's verdict");
    (String::from_utf8_lossy(&verdict.log).into_owned(), verdict.refusal.is_none())
}

#[test]
fn a_chain_that_is_too_deep_for_the_kernel_has_the_size_that_the_kernel_says() {
    let (program, functions) = chain_of(&[200, 8, 200, 136]);
    let (compiled, interpreted) = (deepest(&functions, Rounding::Compiled), deepest(&functions, Rounding::Interpreted));
    assert_eq!(compiled, Chain { bytes: 576, functions: vec![0, 1, 2, 3] });
    assert_eq!(interpreted, Chain { bytes: 640, functions: vec![0, 1, 2, 3] });
    let (log, taken) = verdict(&program);
    let says = |bytes: u32| log.contains(&format!("combined stack size of 4 calls is {bytes}. Too large"));
    assert!(!taken && (says(compiled.bytes) || says(interpreted.bytes)), "{log}");
}

#[test]
fn the_kernel_takes_eight_frames_and_512_bytes_and_no_more() {
    let (program, functions) = chain_of(&[64; FRAMES]);
    let chain = deepest(&functions, Rounding::Interpreted);
    assert_eq!((chain.bytes, longest(&functions).functions.len()), (chains::STACK, FRAMES));
    let (log, taken) = verdict(&program);
    assert!(taken, "{log}");

    let (program, functions) = chain_of(&[8; FRAMES + 1]);
    assert_eq!(longest(&functions).functions.len(), FRAMES + 1);
    let (log, taken) = verdict(&program);
    assert!(!taken && log.contains("the call stack of"), "{log}");

    let (program, functions) = chain_of(&[256, 264]);
    assert!(deepest(&functions, Rounding::Compiled).bytes > chains::STACK);
    let (log, taken) = verdict(&program);
    assert!(!taken && log.contains("combined stack size of 2 calls"), "{log}");
}
