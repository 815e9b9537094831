use super::*;

#[test]
fn the_variable_is_read_as_it_is_written() {
    let (one, two) = UnixStream::pair().unwrap();
    let numbers = (one.as_raw_fd(), two.as_raw_fd());
    let text = variable(&[("channel", one.into()), ("lock", two.into())]);
    let wanted = Given {
        parent: process::id(),
        descriptors: vec![("channel".to_owned(), numbers.0), ("lock".to_owned(), numbers.1)],
    };
    assert_eq!(Given::parse(&text).unwrap(), wanted);
}

#[test]
fn a_variable_that_evenkeel_did_not_write_is_refused() {
    for text in ["", "channel=3", "parent", "parent=x", "parent=1 channel=three", "parent=-1"] {
        assert!(Given::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_message_of_another_version_is_understood_as_far_as_it_goes() {
    let FromOld::Go(memory) = parse(b"{\"go\":{\"moods\":[1,2]}}\n").unwrap();
    assert!(memory.events.is_empty());
    assert!(parse::<FromOld>(b"{\"go\":{}}").is_err(), "cut short");
    assert!(parse::<FromNew>(b"{\"dance\":{}}\n").is_err());
    assert!(parse::<FromNew>(b"\xff\n").is_err());
}
