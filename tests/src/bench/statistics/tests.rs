use super::*;

#[test]
fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
    assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    assert_eq!(median(&[]), None);
}

#[test]
fn one_wild_round_moves_the_spread_and_not_the_median() {
    let summary = Summary::of(&[10.0, 11.0, 9.0, 10.0, 100.0]).unwrap();
    assert_eq!((summary.median, summary.low, summary.high), (10.0, 9.0, 100.0));
    assert!((summary.spread() - 9.1).abs() < 1e-9);
    assert_eq!(Summary::of(&[]), None);
}

#[test]
fn a_percentile_is_a_value_that_was_seen() {
    let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
    assert_eq!(percentile(&sorted, 0.5), Some(100.0));
    assert_eq!(percentile(&sorted, 0.99), Some(198.0));
    assert_eq!(percentile(&sorted, 1.0), Some(200.0));
    assert_eq!(percentile(&[7.0], 0.5), Some(7.0));
    assert_eq!(percentile(&[], 0.5), None);
}

#[test]
fn differences_and_ratios_are_taken_within_a_round() {
    assert_eq!(differences(&[3.0, 30.0], &[1.0, 20.0]), [2.0, 10.0]);
    assert_eq!(ratios(&[3.0, 5.0, 8.0], &[1.0, 0.0, 4.0]), [3.0, 2.0], "no ratio to nothing");
}
