//! The comparison as one picture: a panel for each scenario, a bar for each server.

use std::error::Error;

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use plotters::style::text_anchor::Pos;
use plotters::style::text_anchor::VPos;
use sockeye_loadtest::report;

use crate::record::Record;
use crate::record::Scenario;

const PANEL_WIDTH: i32 = 560;
const BAR_HEIGHT: i32 = 18;
const TITLE_HEIGHT: i32 = 44;
const LABEL_WIDTH: i32 = 200;
const VALUE_WIDTH: i32 = 80;
const COLUMNS: usize = 2;

const INK: RGBColor = RGBColor(40, 44, 52);
const SOCKEYE: RGBColor = RGBColor(214, 72, 40);
const FLOOR: RGBColor = RGBColor(170, 174, 182);
const OTHERS: RGBColor = RGBColor(90, 130, 170);

/// The server's CPU time per unit, in each scenario that has one: shorter is better.
///
/// # Errors
/// It could not be drawn.
pub fn draw(record: &Record) -> Result<String, String> {
    let drawn = try_draw(record);
    drawn.map_err(|error| format!("the chart: {error}"))
}

fn bars(scenario: &Scenario) -> Vec<(&str, f64)> {
    let results = scenario
        .results
        .iter()
        .filter(|result| !result.rounds.is_empty());
    let mut bars: Vec<(&str, f64)> = results
        .map(|result| (&result.server[..], result.median(|round| round.cpu_ns)))
        .collect();
    bars.sort_by(|one, other| one.1.total_cmp(&other.1));
    bars
}

fn try_draw(record: &Record) -> Result<String, Box<dyn Error>> {
    let is_timed = |scenario: &&Scenario| scenario.unit != "connection";
    let panels: Vec<&Scenario> = record.scenarios.iter().filter(is_timed).collect();
    let most = panels
        .iter()
        .map(|panel| panel.results.len())
        .max()
        .unwrap_or(1);
    let panel_height = TITLE_HEIGHT + BAR_HEIGHT * most as i32 + 12;
    let rows = panels.len().div_ceil(COLUMNS) as i32;
    let size = (PANEL_WIDTH * COLUMNS as i32, panel_height * rows);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (size.0 as u32, size.1 as u32));
        let area = area.into_drawing_area();
        area.fill(&WHITE)?;
        let font = |height: i32| ("sans-serif", height).into_font();
        for (index, scenario) in panels.iter().enumerate() {
            let left = PANEL_WIDTH * (index % COLUMNS) as i32;
            let top = panel_height * (index / COLUMNS) as i32;
            let title = format!("{}: server CPU per {}", scenario.name, scenario.unit);
            let style = font(15).style(FontStyle::Bold).color(&INK);
            area.draw(&Text::new(title, (left + 10, top + 16), style))?;
            let bars = bars(scenario);
            let longest = bars.iter().map(|(_, ns)| *ns).fold(1.0, f64::max);
            let room = f64::from(PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH);
            for (place, (name, ns)) in bars.iter().enumerate() {
                let y = top + TITLE_HEIGHT + BAR_HEIGHT * place as i32;
                let x = left + LABEL_WIDTH;
                let end = x + (ns / longest * room) as i32;
                let color = match name {
                    name if name.starts_with("sockeye,") => SOCKEYE,
                    name if name.starts_with("floor") => FLOOR,
                    _ => OTHERS,
                };
                let bar = Rectangle::new([(x, y), (end, y + BAR_HEIGHT - 4)], color.filled());
                area.draw(&bar)?;
                let middle = y + BAR_HEIGHT / 2 - 2;
                let label = font(13).color(&INK);
                let right = label.pos(Pos::new(HPos::Right, VPos::Center));
                area.draw(&Text::new((*name).to_owned(), (x - 6, middle), right))?;
                let value = font(13).color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
                area.draw(&Text::new(report::time(*ns), (end + 6, middle), value))?;
            }
        }
        area.present()?;
    }
    Ok(svg)
}
