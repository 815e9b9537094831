//! Plots, as SVG.

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use super::statistics::Summary;

const SIZE: (u32, u32) = (900, 420);
/// Colours that people with colour blindness can distinguish too (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// The texts of a plot.
pub struct Words<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
}

/// A named row of values, one per group; `None`: not measured.
pub struct Row {
    pub name: String,
    pub values: Vec<Option<Summary>>,
}

/// Draws bars side by side in each group, with the spread as a line.
pub fn bars(file: &Path, words: &Words, groups: &[&str], rows: &[Row]) -> Result<()> {
    let width = rows.len() as f64 + 1.0;
    let highest = rows.iter().flat_map(|row| row.values.iter().flatten()).map(|value| value.high).fold(0.0, f64::max);
    draw(file, |root| {
        let mut chart = ChartBuilder::on(root)
            .caption(words.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..width * groups.len() as f64, 0.0..highest.max(1e-9) * 1.08)?;
        // A label is at the middle of its group; the other positions have none.
        let label = |x: &f64| {
            let group = (x / width).floor();
            let is_middle = (x - (group + 0.5) * width).abs() < 0.26;
            if is_middle {
                groups.get(group as usize).map(ToString::to_string).unwrap_or_default()
            } else {
                String::new()
            }
        };
        let places = (width * groups.len() as f64 * 2.0) as usize + 1;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(places)
            .x_label_formatter(&label)
            .x_desc(words.x)
            .y_desc(words.y)
            .draw()?;
        for (number, row) in rows.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let left = |group: usize| group as f64 * width + number as f64 + 0.5;
            let values = || row.values.iter().enumerate().filter_map(|(group, value)| Some((left(group), (*value)?)));
            let bars = values().map(|(x, value)| {
                Rectangle::new([(x + 0.08, 0.0), (x + 0.92, value.median.max(0.0))], colour.filled())
            });
            chart
                .draw_series(bars)?
                .label(row.name.clone())
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
            chart.draw_series(values().map(|(x, value)| {
                PathElement::new([(x + 0.5, value.low.max(0.0)), (x + 0.5, value.high.max(0.0))], BLACK)
            }))?;
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
        Ok(())
    })
}

/// A named curve.
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// Draws curves over a logarithmic axis.
pub fn curves(file: &Path, words: &Words, curves: &[Curve]) -> Result<()> {
    let all = || curves.iter().flat_map(|curve| curve.points.iter());
    let furthest = all().map(|(x, _)| *x).fold(1.0, f64::max);
    let highest = all().map(|(_, y)| *y).fold(1.0, f64::max);
    draw(file, |root| {
        let mut chart = ChartBuilder::on(root)
            .caption(words.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d((1.0..furthest * 1.05).log_scale(), 0.0..highest * 1.05)?;
        chart
            .configure_mesh()
            .x_desc(words.x)
            .y_desc(words.y)
            .x_label_formatter(&|x| super::tables::number(*x))
            .draw()?;
        for (number, curve) in curves.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            chart
                .draw_series(LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2)))?
                .label(curve.name.clone())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2)));
        }
        let position = SeriesLabelPosition::UpperLeft;
        chart.configure_series_labels().position(position).background_style(WHITE.mix(0.8)).draw()?;
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(file: &Path, draw: impl FnOnce(&Area) -> Drawn) -> Result<()> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let done = root.fill(&WHITE).map_err(Into::into).and_then(|()| draw(&root));
        done.and_then(|()| root.present().map_err(Into::into))
            .map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))?;
    }
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_groups_and_rows() {
        let folder = std::env::temp_dir().join(format!("plots-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let value = Some(Summary { median: 2.0, low: 1.0, high: 3.0 });
        let rows = [
            Row { name: "nginx".into(), values: vec![value, value] },
            Row { name: "evenkeel".into(), values: vec![value, None] },
        ];
        let words = Words { title: "What is added", x: "", y: "µs" };
        bars(&folder.join("bars.svg"), &words, &["kept", "new"], &rows).unwrap();
        let curve = Curve { name: "forward".into(), points: vec![(1.0, 40.0), (1024.0, 50.0)] };
        curves(&folder.join("curves.svg"), &words, &[curve]).unwrap();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        let (bars, curves) = (read("bars.svg"), read("curves.svg"));
        fs::remove_dir_all(&folder).unwrap();
        for word in ["What is added", "nginx", "evenkeel", "kept", "new", "µs"] {
            assert!(bars.contains(word), "{word}");
        }
        assert!(curves.contains("forward") && curves.contains("<polyline"));
    }
}
