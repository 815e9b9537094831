//! Suggestions for a word that is not known.

/// The known word that was probably meant, if one is close enough.
pub fn did_you_mean<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (likeness, near) =
        known.map(|near| (strsim::jaro_winkler(word, near), near)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (likeness > 0.8).then_some(near)
}
