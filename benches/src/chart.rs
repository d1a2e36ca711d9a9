//! The curve over the callers: how many a second, and how long each waits.

use std::path::Path;

use anyhow::{Context as _, ensure};
use plotters::prelude::*;

use crate::{results::GoalResult, table};

/// In pixels.
const SIZE: (u32, u32) = (900, 720);
const LABEL: (&str, u32) = ("sans-serif", 15);
const INK: RGBColor = RGBColor(36, 41, 47);
const RATE: RGBColor = RGBColor(9, 105, 218);
const P50: RGBColor = RGBColor(26, 127, 55);
const P99: RGBColor = RGBColor(188, 76, 0);

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// What one number of callers came to, at the median.
struct Point {
    callers: f64,
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
}

fn points(curve: &GoalResult) -> Vec<Point> {
    let point = |subject: &crate::results::SubjectResult| {
        let summary = subject.summary.as_ref()?;
        Some(Point {
            callers: subject.id.parse().ok()?,
            rate: summary.rate?.median,
            p50_ms: summary.p50_ms?,
            p99_ms: summary.p99_ms?,
        })
    };
    curve.subjects.iter().filter_map(point).collect()
}

/// Writes the curve to an SVG file.
pub fn draw(curve: &GoalResult, file: &Path) -> anyhow::Result<()> {
    let points = points(curve);
    ensure!(points.len() > 1, "a curve needs more than one point");
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (upper, lower) = area.split_vertically(SIZE.1 / 2);
    let fewest = points.first().map_or(1.0, |point| point.callers);
    let most = points.last().map_or(1.0, |point| point.callers);
    rates(&upper, &points, fewest..most)?;
    latencies(&lower, &points, fewest..most)?;
    area.present().with_context(|| format!("write {}", file.display()))
}

fn rates(area: &Area<'_>, points: &[Point], callers: std::ops::Range<f64>) -> anyhow::Result<()> {
    let highest = points.iter().map(|point| point.rate).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("MarkProcessed, new events: answers a second", ("sans-serif", 20, &INK))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(72)
        .build_cartesian_2d(callers.log_scale(), 0.0..highest * 1.1)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .label_style(LABEL)
        .x_label_formatter(&|callers| table::count(*callers))
        .y_label_formatter(&|rate| table::count(*rate))
        .draw()?;
    let line = || points.iter().map(|point| (point.callers, point.rate));
    chart.draw_series(LineSeries::new(line(), RATE.stroke_width(2)))?;
    chart.draw_series(line().map(|point| Circle::new(point, 4, RATE.filled())))?;
    Ok(())
}

fn latencies(
    area: &Area<'_>,
    points: &[Point],
    callers: std::ops::Range<f64>,
) -> anyhow::Result<()> {
    let shortest = points.iter().map(|point| point.p50_ms).fold(f64::MAX, f64::min);
    let longest = points.iter().map(|point| point.p99_ms).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("latency, ms", ("sans-serif", 20, &INK))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(callers.log_scale(), (shortest / 2.0..longest * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .label_style(LABEL)
        .x_desc("callers, each with one call under way")
        .x_label_formatter(&|callers| table::count(*callers))
        .draw()?;
    let p50: fn(&Point) -> f64 = |point| point.p50_ms;
    for (name, color, latency) in [("p50", P50, p50), ("p99", P99, |point| point.p99_ms)] {
        let line = || points.iter().map(|point| (point.callers, latency(point)));
        chart
            .draw_series(LineSeries::new(line(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(line().map(|point| Circle::new(point, 4, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .label_font(LABEL)
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(INK)
        .draw()?;
    Ok(())
}
