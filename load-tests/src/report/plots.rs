//! SVG plots: latency distribution, throughput over time, memory over connections.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::{
    Cartesian2d, ChartBuilder, ChartContext, Color, IntoDrawingArea, IntoLogRange, LineSeries,
    PathElement, RGBColor, SVGBackend, SeriesLabelPosition, WHITE,
};

use super::table::short;

const SIZE: (u32, u32) = (860, 420);
const MARGIN: u32 = 24;
/// Told apart without telling red from green.
const COLORS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x55, 0x55, 0x55),
];

/// A named line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Percentile against milliseconds. The axis halves the distance to 100 % from mark to mark, so that
/// the tail has room; milliseconds are logarithmic.
pub(crate) fn latency(lines: &[Line]) -> Result<String> {
    let lines: Vec<Line> = lines
        .iter()
        .map(|line| Line {
            name: line.name.clone(),
            points: line
                .points
                .iter()
                .map(|(percent, millis)| (nines(*percent), millis.max(0.001)))
                .collect(),
        })
        .collect();
    let (x_end, y_end) = ends(&lines);
    let y_start = lines
        .iter()
        .flat_map(|line| &line.points)
        .map(|point| point.1)
        .fold(y_end, f64::min);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(broken)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(MARGIN)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(
                0.0..x_end.max(1.0),
                (y_start * 0.8..y_end * 1.2).log_scale(),
            )
            .map_err(broken)?;
        chart
            .configure_mesh()
            .x_desc("percentile")
            .y_desc("publish to received, ms")
            .x_labels(6)
            .max_light_lines(1)
            .x_label_formatter(&|nines| {
                format!("{} %", round(100.0 * (1.0 - 0.1_f64.powf(*nines))))
            })
            .draw()
            .map_err(broken)?;
        draw(&mut chart, &lines, SeriesLabelPosition::LowerRight)?;
        area.present().map_err(broken)?;
    }
    Ok(svg)
}

/// Lines on plain axes that begin at zero.
pub(crate) fn plain(lines: &[Line], x_name: &str, y_name: &str) -> Result<String> {
    let (x_end, y_end) = ends(lines);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(broken)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(MARGIN)
            .x_label_area_size(40)
            .y_label_area_size(90)
            .build_cartesian_2d(0.0..x_end.max(1e-3), 0.0..y_end.max(1e-3) * 1.1)
            .map_err(broken)?;
        chart
            .configure_mesh()
            .x_desc(x_name)
            .y_desc(y_name)
            .y_label_formatter(&|value| round(*value).to_string())
            .max_light_lines(1)
            .draw()
            .map_err(broken)?;
        draw(&mut chart, lines, SeriesLabelPosition::UpperRight)?;
        area.present().map_err(broken)?;
    }
    Ok(svg)
}

/// Lines on two logarithmic axes; every value is above zero.
pub(crate) fn logarithmic(lines: &[Line], x_name: &str, y_name: &str) -> Result<String> {
    let (x_end, y_end) = ends(lines);
    let start = |of: fn(&(f64, f64)) -> f64, end: f64| {
        let points = lines.iter().flat_map(|line| &line.points);
        points.map(of).fold(end, f64::min).max(1e-3)
    };
    let (x_start, y_start) = (start(|point| point.0, x_end), start(|point| point.1, y_end));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(broken)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(MARGIN)
            .x_label_area_size(40)
            .y_label_area_size(90)
            .build_cartesian_2d(
                (x_start..x_end.max(x_start * 10.0)).log_scale(),
                (y_start..y_end.max(y_start * 10.0)).log_scale(),
            )
            .map_err(broken)?;
        chart
            .configure_mesh()
            .x_desc(x_name)
            .y_desc(y_name)
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| round(*value).to_string())
            .max_light_lines(1)
            .draw()
            .map_err(broken)?;
        draw(&mut chart, lines, SeriesLabelPosition::UpperLeft)?;
        area.present().map_err(broken)?;
    }
    Ok(svg)
}

/// The lines, each in its colour, and the legend.
fn draw<'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    lines: &[Line],
    legend: SeriesLabelPosition,
) -> Result<()>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    for (line, color) in lines.iter().zip(COLORS.into_iter().cycle()) {
        chart
            .draw_series(LineSeries::new(
                line.points.iter().copied(),
                color.stroke_width(2),
            ))
            .map_err(broken)?
            .label(&line.name)
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2))
            });
    }
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.8))
        .draw()
        .map_err(broken)
}

/// Three decimals at most, none that say nothing.
fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// 90 % → 1, 99 % → 2, 99.9 % → 3
fn nines(percent: f64) -> f64 {
    -(1.0 - percent / 100.0).max(1e-9).log10()
}

fn ends(lines: &[Line]) -> (f64, f64) {
    let points = || lines.iter().flat_map(|line| &line.points);
    (
        points().map(|point| point.0).fold(0.0, f64::max),
        points().map(|point| point.1).fold(0.0, f64::max),
    )
}

#[allow(clippy::needless_pass_by_value, reason = "the shape `map_err` wants")]
fn broken<E: std::error::Error + Send + Sync>(
    error: plotters::drawing::DrawingAreaErrorKind<E>,
) -> anyhow::Error {
    anyhow!("drawing a plot: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_are_svg() {
        let lines = [
            Line {
                name: "one".into(),
                points: vec![(0.0, 1.0), (50.0, 2.0), (99.9, 90.0)],
            },
            Line {
                name: "two".into(),
                points: vec![(0.0, 3.0), (50.0, 4.0)],
            },
        ];
        for svg in [
            latency(&lines).unwrap(),
            plain(&lines, "s", "events").unwrap(),
            logarithmic(&lines, "connections", "cores").unwrap(),
            plain(&[], "x", "y").unwrap(),
        ] {
            assert!(
                svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"),
                "{svg}"
            );
        }
        assert!(latency(&lines).unwrap().contains("one"));
    }
}
