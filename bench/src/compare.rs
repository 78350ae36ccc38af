//! Drives every server in alternating rounds with the load generator, and says how they
//! compare.

use std::fmt::Write;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use sockeye_loadtest::crew::COMPRESSED_TO;
use sockeye_loadtest::report;
use sockeye_loadtest::report::Report;

use crate::record::Record;
use crate::record::Result as ServerResult;
use crate::record::Round;
use crate::record::Scenario;
use crate::record::median;
use crate::servers::Places;
use crate::servers::Server;

/// The server that the others are compared with.
const REFERENCE: &str = "sockeye, io_uring";

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of each scenario.
    pub rounds: usize,
    /// Servers that are not near take part in every so many of them.
    pub far_every: usize,
    /// The measured time of each.
    pub duration: Duration,
    /// The time before it.
    pub warm_up: Duration,
    /// Receivers of broadcasts.
    pub receivers: u32,
    /// Idle connections.
    pub idle: u32,
}

/// One scenario to be run.
#[derive(Clone, Debug)]
struct Plan {
    name: String,
    unit: &'static str,
    /// Which servers can.
    needs: &'static str,
    mode: &'static str,
    /// Only of the servers that are near.
    near: bool,
    args: Vec<String>,
    /// Memory is not a matter of rounds.
    once: bool,
}

fn plan(name: &str, unit: &'static str, needs: &'static str, args: &str) -> Plan {
    Plan {
        name: name.to_owned(),
        unit,
        needs,
        mode: match needs {
            "broadcast" | "deflate" | "tls" => needs,
            _ => "echo",
        },
        near: false,
        args: args.split(' ').map(str::to_owned).collect(),
        once: false,
    }
}

fn echoes(quick: bool) -> Vec<Plan> {
    let sizes: &[(u32, &str)] = &[(64, "64 B"), (1024, "1 KiB"), (16_384, "16 KiB")];
    let mut plans = Vec::new();
    for depth in [1, 16] {
        for (size, name) in sizes.iter().take(if quick { 1 } else { sizes.len() }) {
            let name = format!("echo, 64 connections × {depth}, {name}");
            let args = format!("echo --connections 64 --depth {depth} --size {size}");
            plans.push(plan(&name, "message", "echo", &args));
        }
    }
    if !quick {
        let args = "echo --connections 2000 --depth 1 --size 64";
        plans.push(plan(
            "echo, 2,000 connections × 1, 64 B",
            "message",
            "echo",
            args,
        ));
    }
    plans
}

/// Scenarios in which only servers that are near each other are looked at.
fn near() -> Vec<Plan> {
    let one = "echo --connections 1 --depth 1 --size 64";
    let mixed = "echo --connections 64 --depth 16 --size 1024 --kind mixed";
    let long = "echo --connections 16 --depth 4 --size 1048576";
    let tls = "echo --connections 64 --depth 16 --size 1024";
    let mut plans = vec![
        plan("echo, 1 connection × 1, 64 B", "message", "echo", one),
        plan(
            "echo, 64 connections × 16, 1 KiB of mixed text",
            "message",
            "echo",
            mixed,
        ),
        plan("echo, 16 connections × 4, 1 MiB", "message", "echo", long),
        plan(
            "echo over TLS 1.3, 64 connections × 16, 1 KiB",
            "message",
            "tls",
            tls,
        ),
    ];
    for count in [1_000, 10_000] {
        let count_text = report::count(count.into());
        let name = format!("echo, {count_text} connections × 1, 64 B");
        let args = format!("echo --connections {count} --depth 1 --size 64");
        plans.push(plan(&name, "message", "echo", &args));
    }
    plans[2].mode = "long";
    let sixteen = "echo --connections 64 --depth 16 --size 64";
    plans.push(plan(
        "echo on one thread and on two, 64 connections × 16, 64 B",
        "message",
        "threads",
        sixteen,
    ));
    for plan in &mut plans {
        plan.near = true;
    }
    plans
}

/// Runs every scenario; `quick` leaves most sizes out.
pub fn run(
    places: &Places,
    servers: &[Server],
    effort: Effort,
    quick: bool,
    wanted: impl Fn(&str) -> bool,
) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    let mut add = |plan: &Plan| {
        if wanted(&plan.name) {
            eprintln!("{}", plan.name);
            scenarios.push(rounds(places, servers, effort, plan));
        }
        scenarios.last().cloned()
    };
    let mut capacity = f64::INFINITY;
    for (index, plan) in echoes(quick).iter().enumerate() {
        let done = add(plan);
        if index == 0 {
            let results = done.into_iter().flat_map(|scenario| scenario.results);
            let medians = results.map(|result| result.median(|round| round.per_second));
            capacity = medians
                .filter(|rate| rate.is_finite())
                .fold(capacity, f64::min);
        }
    }
    if !quick {
        near().iter().for_each(|plan| drop(add(plan)));
    }
    let sizes = [(1024, "1 KiB"), (16_384, "16 KiB")];
    for (size, name) in sizes.into_iter().take(if quick { 1 } else { 2 }) {
        for depth in [1, 16].into_iter().take(if quick { 1 } else { 2 }) {
            let name = format!("compressed echo, 64 connections × {depth}, {name} of JSON");
            let args = format!(
                "echo --connections 64 --depth {depth} --size {size} --kind json --compression \
                 shared"
            );
            add(&plan(&name, "message", "deflate", &args));
        }
    }
    if capacity.is_finite() {
        let rate = (capacity / 2.0) as u64;
        let per_second = report::count(rate as f64);
        let name = format!("open loop, 64 connections, {per_second} messages/s of 64 B");
        let args = format!("rate --connections 64 --size 64 --rate {rate}");
        add(&plan(&name, "message", "echo", &args));
    }
    let receivers = effort.receivers;
    let name = format!("broadcast to {}, 64 B", report::count(receivers.into()));
    let args = format!("broadcast --connections {receivers} --size 64");
    add(&plan(&name, "delivery", "broadcast", &args));
    add(&plan(
        "churn, 64 connections",
        "cycle",
        "churn",
        "churn --connections 64",
    ));
    let idle = effort.idle;
    let name = format!("idle memory, {} connections", report::count(idle.into()));
    let args = format!("connections --count {idle} --idle 1");
    add(&Plan {
        once: true,
        ..plan(&name, "connection", "idle", &args)
    });
    scenarios
}

/// Rounds of one scenario: each server once in each, another first each time.
fn rounds(places: &Places, servers: &[Server], effort: Effort, plan: &Plan) -> Scenario {
    let able: Vec<&Server> = servers
        .iter()
        .filter(|server| server.can(plan.needs) && (server.can("near") || !plan.near))
        .collect();
    let mut results: Vec<ServerResult> = able
        .iter()
        .map(|server| ServerResult {
            server: server.name.clone(),
            ..ServerResult::default()
        })
        .collect();
    for round in 0..if plan.once { 1 } else { effort.rounds } {
        for place in 0..able.len() {
            let which = (place + round * able.len() / effort.rounds.max(1)) % able.len();
            if !able[which].can("near") && round % effort.far_every.max(1) > 0 {
                continue;
            }
            match measure(places, able[which], effort, plan) {
                Ok(report) => results[which].rounds.push(Round::new(round, &report)),
                Err(what) => results[which].failure = Some(what),
            }
        }
    }
    Scenario {
        name: plan.name.clone(),
        unit: plan.unit.to_owned(),
        command: format!("sockeye-loadtest {}", plan.args.join(" ")),
        results,
    }
}

fn measure(
    places: &Places,
    server: &Server,
    effort: Effort,
    plan: &Plan,
) -> Result<Report, String> {
    let running = server.start(places, plan.mode)?;
    let mut args = plan.args.iter();
    let output = Command::new(places.loadtest())
        .args(args.next())
        .arg(running.url(plan.mode))
        .args(running.authorities(places, plan.mode))
        .args(args)
        .args(["--server-pid", &running.pid().to_string()])
        .args(["--seconds", &effort.duration.as_secs_f64().to_string()])
        .args(["--warm-up", &effort.warm_up.as_secs_f64().to_string()])
        .args(["--quiet", "--json", "-"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(said.trim().trim_start_matches("error: ").to_owned());
    }
    let report: Report =
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    if plan.needs == "deflate" && report.figure_of(COMPRESSED_TO).is_none() {
        return Err("it did not compress its replies".to_owned());
    }
    Ok(report)
}

/// The canonical workload: echoes of 64 bytes, 64 connections, 16 under way on each; and the
/// open loop at 20,000 messages a second.
///
/// # Errors
/// The server failed.
pub fn canonical(places: &Places, server: &Server) -> Result<(Report, Report), String> {
    let effort = Effort {
        rounds: 1,
        far_every: 1,
        duration: Duration::from_secs(5),
        warm_up: Duration::from_millis(500),
        receivers: 0,
        idle: 0,
    };
    let echo = plan(
        "echo",
        "message",
        "echo",
        "echo --connections 64 --depth 16",
    );
    let rate = plan(
        "rate",
        "message",
        "echo",
        "rate --connections 64 --rate 20000",
    );
    Ok((
        measure(places, server, effort, &echo)?,
        measure(places, server, effort, &rate)?,
    ))
}

/// A table in Markdown for each scenario.
pub fn tables(record: &Record) -> String {
    let mut text = String::new();
    for scenario in &record.scenarios {
        let _ = write!(text, "### {}\n\n", scenario.name);
        let _ = write!(text, "`{}`\n\n", scenario.command);
        table(scenario, &mut text);
    }
    if !record.skipped.is_empty() {
        text.push_str("Skipped:\n\n");
        for skipped in &record.skipped {
            let _ = writeln!(text, "- {}: {}", skipped.name, skipped.reason);
        }
        text.push('\n');
    }
    text
}

fn table(scenario: &Scenario, text: &mut String) {
    let reference = scenario
        .results
        .iter()
        .find(|result| result.server == REFERENCE);
    let is_memory = scenario.unit == "connection";
    let figure = |round: &Round| {
        if is_memory {
            round.bytes_per_connection
        } else {
            round.cpu_ns
        }
    };
    let mut results: Vec<&ServerResult> = scenario
        .results
        .iter()
        .filter(|result| !result.rounds.is_empty())
        .collect();
    results.sort_by(|one, other| one.median(figure).total_cmp(&other.median(figure)));
    if is_memory {
        text.push_str("| server | bytes per connection | ratio |\n| --- | --- | --- |\n");
    } else {
        let (unit, units) = (&scenario.unit, report::plural(&scenario.unit));
        let _ = write!(
            text,
            "| server | CPU per {unit} | in user space | ratio (rounds) | {units}/s | p50 | p99 | p99.9 |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        );
    }
    let mut limited_by_generator = false;
    let mut compressed = Vec::new();
    for result in results {
        let own = result.median(figure);
        let ratio = reference.map_or(f64::NAN, |reference| own / reference.median(figure));
        let name = &result.server;
        if is_memory {
            let _ = writeln!(text, "| {name} | {} | {ratio:.2} |", report::bytes(own));
            continue;
        }
        let (least, most) = reference.map_or((f64::NAN, f64::NAN), |reference| {
            result.spread(reference, figure)
        });
        let limited = result.rounds.iter().any(|round| round.limited);
        limited_by_generator |= limited;
        let share = result.median(|round| round.compressed_to.unwrap_or(f64::NAN));
        if share.is_finite() {
            compressed.push(format!("{name} {:.1} %", 100.0 * share));
        }
        let at = |time: fn(&Round) -> u64| {
            report::time(median(result.rounds.iter().map(|round| time(round) as f64)))
        };
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {ratio:.2} ({least:.2}–{most:.2}) | {}{} | {} | {} | {} |",
            report::time(own),
            report::time(result.median(|round| round.user_ns)),
            report::count(result.median(|round| round.per_second)),
            if limited { " †" } else { "" },
            at(|round| round.p50),
            at(|round| round.p99),
            at(|round| round.p99_9)
        );
    }
    text.push('\n');
    if !compressed.is_empty() {
        let _ = write!(text, "Compressed to: {}.\n\n", compressed.join(", "));
    }
    if limited_by_generator {
        text.push_str(
            "† The generator was the limit in at least one round: the server can do more.\n\n",
        );
    }
    for result in &scenario.results {
        if let Some(failure) = &result.failure {
            let _ = write!(text, "{}: {failure}.\n\n", result.server);
        }
    }
}
