//! The servers that are compared: how each is built, started and stopped.

use std::env;
use std::fs;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use serde::Deserialize;
use serde::Serialize;

/// A server that can be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Server {
    /// What tables call it.
    pub name: String,
    /// Which version of it.
    pub version: String,
    /// How it is set up.
    pub settings: String,
    /// The scenarios that it has a server for: `echo`, `deflate`, `tls`, `broadcast`, `churn`,
    /// `idle`. And `near` if it is near the floor: then it takes part in more rounds, and in
    /// scenarios that are about small differences.
    pub scenarios: Vec<String>,
    /// The program, for each mode.
    #[serde(skip)]
    programs: Programs,
}

/// How a server is started.
#[derive(Clone, Debug, Default)]
enum Programs {
    #[default]
    None,
    /// An example: echo and broadcast are two programs. These flags.
    Example(Vec<String>),
    /// The floor, on this backend.
    Floor(String),
    /// `PROGRAM ADDRESS MODE FLAGS`; Node.js runs scripts.
    Rival(PathBuf, Vec<String>),
}

/// A server that cannot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Skipped {
    /// What it is.
    pub name: String,
    /// What went wrong.
    pub reason: String,
}

/// What `rival.toml` says.
#[derive(Debug, Deserialize)]
struct Manifest {
    version: String,
    language: Language,
    settings: String,
    scenarios: Vec<String>,
    servers: Vec<Variant>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Language {
    #[serde(rename = "rust")]
    Rust,
    #[serde(rename = "go")]
    Go,
    #[serde(rename = "c++")]
    Cxx,
    #[serde(rename = "node")]
    Node,
}

#[derive(Debug, Deserialize)]
struct Variant {
    name: String,
    #[serde(default)]
    args: Vec<String>,
    scenarios: Option<Vec<String>>,
}

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Places {
    /// The workspace.
    pub root: PathBuf,
    /// Where its release build goes.
    pub release: PathBuf,
}

impl Places {
    /// Those of the program that runs.
    ///
    /// # Errors
    /// The program does not know where it is.
    pub fn new() -> io::Result<Self> {
        let own = env::current_exe()?;
        let release = own.parent().ok_or(io::ErrorKind::NotFound)?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        Ok(Self {
            root: root.canonicalize()?,
            release: release.to_owned(),
        })
    }

    /// The load generator.
    pub fn loadtest(&self) -> PathBuf {
        self.release.join("sockeye-loadtest")
    }

    /// A certificate chain for this machine's own addresses, and its key; made where they are not
    /// there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn certificate(&self) -> Result<(PathBuf, PathBuf), String> {
        let folder = self.release.join("tls");
        let files = (folder.join("chain.pem"), folder.join("key.pem"));
        if !files.1.exists() {
            let mut certificate = Command::new(self.release.join("examples/certificate"));
            run(certificate.arg("--out").arg(&folder))?;
        }
        Ok(files)
    }

    /// Builds what the workspace has: the load generator, the examples, the floor.
    ///
    /// # Errors
    /// It does not build.
    pub fn build_own(&self) -> Result<(), String> {
        let mut cargo = Command::new("cargo");
        cargo
            .args(["build", "--release", "--locked", "--target-dir"])
            .arg(self.release.join(".."))
            .args(["-p", "sockeye-loadtest", "-p", "sockeye-bench", "--bins"])
            .args(["-p", "sockeye-examples", "--example", "echo"])
            .args(["--example", "broadcast", "--example", "autobahn"])
            .args(["--example", "certificate"])
            .current_dir(&self.root);
        run(&mut cargo).map(|_| ())
    }
}

/// Runs a command to its end; what it printed.
///
/// # Errors
/// The end of what it said was wrong.
fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let is_error = |line: &&str| line.to_ascii_lowercase().contains("error");
    let line = said.lines().find(is_error).or(said.lines().last());
    Err(format!("{program}: {}", line.unwrap_or("it failed").trim()))
}

/// sockeye on each backend, and the floor.
pub fn own() -> Vec<Server> {
    let all = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    let version = env!("CARGO_PKG_VERSION");
    let sockeye = |name: &str, backend: &str| Server {
        name: format!("sockeye, {name}"),
        version: version.to_owned(),
        settings: "one thread, the examples echo and broadcast with their defaults".to_owned(),
        scenarios: all(&[
            "echo",
            "deflate",
            "tls",
            "broadcast",
            "churn",
            "idle",
            "near",
            "threads",
        ]),
        programs: Programs::Example(all(&["--threads", "1", "--backend", backend])),
    };
    let two = |name: &str, backend: &str| Server {
        name: format!("sockeye, {name}, two threads"),
        version: version.to_owned(),
        settings: "two threads, the example echo with its defaults".to_owned(),
        scenarios: all(&["near", "threads"]),
        programs: Programs::Example(all(&["--threads", "2", "--backend", backend])),
    };
    let floor = |name: &str, backend: &str| Server {
        name: format!("floor, {name}"),
        version: version.to_owned(),
        settings: "one thread: parse a header, unmask, reply; no checks".to_owned(),
        scenarios: all(&["echo", "near"]),
        programs: Programs::Floor(backend.to_owned()),
    };
    vec![
        sockeye("io_uring", "uring"),
        sockeye("epoll", "poll"),
        two("io_uring", "uring"),
        two("epoll", "poll"),
        floor("io_uring", "uring"),
        floor("epoll", "poll"),
    ]
}

/// Builds every rival that can be built here.
pub fn rivals(places: &Places, wanted: impl Fn(&str) -> bool) -> (Vec<Server>, Vec<Skipped>) {
    let folder = places.root.join("bench/rivals");
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join("rival.toml").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let (mut servers, mut skipped) = (Vec::new(), Vec::new());
    for name in names.iter().filter(|name| wanted(name)) {
        eprintln!("building {name}");
        match rival(places, &folder.join(name), name) {
            Ok(built) => servers.extend(built),
            Err(reason) => skipped.push(Skipped {
                name: name.clone(),
                reason,
            }),
        }
    }
    (servers, skipped)
}

fn rival(places: &Places, folder: &Path, name: &str) -> Result<Vec<Server>, String> {
    let manifest = fs::read_to_string(folder.join("rival.toml"));
    let manifest = manifest.map_err(|error| error.to_string())?;
    let manifest: Manifest = toml::from_str(&manifest).map_err(|error| error.to_string())?;
    let target = places.release.join("rivals");
    fs::create_dir_all(&target).map_err(|error| error.to_string())?;
    let mut program = target.join(format!("rival-{name}"));
    match manifest.language {
        Language::Rust => {
            let mut cargo = Command::new("cargo");
            cargo.args(["build", "--release", "--locked", "--target-dir"]);
            run(cargo.arg(&target).current_dir(folder))?;
            program = target.join("release").join(format!("rival-{name}"));
        }
        Language::Go => {
            let mut go = Command::new("go");
            go.args(["build", "-mod=readonly", "-o"]).arg(&program);
            run(go.arg(".").current_dir(folder))?;
        }
        Language::Node => {
            // Its packages beside a copy of it, as Node.js looks for them.
            let home = target.join(name);
            fs::create_dir_all(&home).map_err(|error| error.to_string())?;
            for file in ["package.json", "package-lock.json", "server.mjs"] {
                fs::copy(folder.join(file), home.join(file)).map_err(|error| error.to_string())?;
            }
            let mut npm = Command::new("npm");
            run(npm.args(["ci", "--silent"]).current_dir(&home))?;
            program = home.join("server.mjs");
        }
        Language::Cxx => {
            let mut build = Command::new(folder.join("build"));
            run(build.arg(&program).args(sources(folder)?))?;
        }
    }
    let servers = manifest.servers.into_iter().map(|variant| Server {
        name: variant.name,
        version: manifest.version.clone(),
        settings: manifest.settings.clone(),
        scenarios: variant.scenarios.unwrap_or(manifest.scenarios.clone()),
        programs: Programs::Rival(program.clone(), variant.args),
    });
    Ok(servers.collect())
}

/// The folders of the crates that a rival depends on for their sources, by name.
fn sources(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut cargo = Command::new("cargo");
    cargo.args(["metadata", "--locked", "--format-version", "1"]);
    let metadata = run(cargo.current_dir(folder))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).map_err(|error| error.to_string())?;
    let packages = metadata["packages"].as_array().ok_or("no packages")?;
    let is_sources = |package: &&serde_json::Value| {
        let name = package["name"].as_str().unwrap_or("");
        name.starts_with("lib") && name.ends_with("-sys")
    };
    let mut folders: Vec<(&str, &Path)> = Vec::new();
    for package in packages.iter().filter(is_sources) {
        let manifest = package["manifest_path"].as_str().ok_or("no manifest")?;
        let folder = Path::new(manifest).parent().ok_or("no folder")?;
        folders.push((package["name"].as_str().unwrap_or(""), folder));
    }
    folders.sort_unstable();
    Ok(folders
        .into_iter()
        .map(|(_, folder)| folder.to_owned())
        .collect())
}

/// A server that runs, until it is dropped.
#[derive(Debug)]
pub struct Running {
    process: Child,
    /// Where it listens: `127.0.0.1:9001`.
    pub address: String,
}

impl Server {
    /// Whether it has a server for this scenario; every echo server has one for latency.
    pub fn can(&self, scenario: &str) -> bool {
        self.scenarios.iter().any(|own| own == scenario)
    }

    /// Starts it in a mode: `echo`, `long` (an echo server for messages of up to 16 MiB), `deflate`
    /// (one with compression, each message by itself), `tls` (one that speaks it), or `broadcast`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&self, places: &Places, mode: &str) -> Result<Running, String> {
        const ANY: &str = "127.0.0.1:0";
        const LONG: &str = "16777216";
        let mut command = match &self.programs {
            Programs::None => return Err("it was not built here".to_owned()),
            Programs::Example(flags) => {
                let example = match mode {
                    "broadcast" => "broadcast",
                    _ => "echo",
                };
                let mut command = Command::new(places.release.join("examples").join(example));
                command.args(["--bind", ANY]).args(flags);
                match mode {
                    "deflate" => command.args(["--compression", "shared"]),
                    "long" => command.args(["--max-message", LONG]),
                    "tls" => {
                        let (chain, key) = places.certificate()?;
                        command.arg("--tls-cert").arg(chain);
                        command.arg("--tls-key").arg(key)
                    }
                    _ => &mut command,
                };
                command
            }
            Programs::Floor(backend) => {
                let mut command = Command::new(places.release.join("sockeye-floor"));
                command.args(["--bind", ANY, "--backend", backend]);
                command
            }
            Programs::Rival(program, flags) => {
                let is_script = program
                    .extension()
                    .is_some_and(|extension| extension == "mjs");
                let mut command = match is_script {
                    true => Command::new("node"),
                    false => Command::new(program),
                };
                command.args(is_script.then_some(program));
                // All of them take long messages as they are.
                command.args([ANY, if mode == "long" { "echo" } else { mode }]);
                if mode == "tls" {
                    let (chain, key) = places.certificate()?;
                    command.arg(chain).arg(key);
                }
                command.args(flags);
                command.env("GOMAXPROCS", "1");
                command
            }
        };
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let process = command.stdout(Stdio::piped()).spawn();
        let mut process = process.map_err(|error| error.to_string())?;
        let stdout = process.stdout.take().ok_or("no output")?;
        let mut running = Running {
            process,
            address: String::new(),
        };
        for line in BufReader::new(stdout).lines() {
            let line = line.map_err(|error| error.to_string())?;
            if let Some(rest) = line.strip_prefix("listening on ") {
                let end = rest.find([',', ' ']).unwrap_or(rest.len());
                rest[..end].clone_into(&mut running.address);
                return Ok(running);
            }
        }
        Err("it did not start".to_owned())
    }
}

impl Running {
    /// Where it is.
    pub fn url(&self, mode: &str) -> String {
        let scheme = if mode == "tls" { "wss" } else { "ws" };
        format!("{scheme}://{}/", self.address)
    }

    /// Flags for a client that has to know who has signed its certificate.
    pub fn authorities(&self, places: &Places, mode: &str) -> Vec<PathBuf> {
        match (mode, places.certificate()) {
            ("tls", Ok((chain, _))) => vec!["--authorities".into(), chain],
            _ => Vec::new(),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rival_says_what_it_is() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("rivals");
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).expect("it is there") {
            let file = entry.expect("it is readable").path().join("rival.toml");
            let text = fs::read_to_string(&file).expect("each has one");
            let manifest: Manifest = toml::from_str(&text).expect("it is valid");
            assert!(!manifest.version.is_empty(), "{file:?}");
            assert!(!manifest.settings.is_empty(), "{file:?}");
            let known = [
                "echo",
                "deflate",
                "tls",
                "broadcast",
                "churn",
                "idle",
                "near",
                "threads",
            ];
            let is_known = |name: &String| known.contains(&&name[..]);
            assert!(manifest.scenarios.iter().all(is_known), "{file:?}");
            names.extend(manifest.servers.into_iter().map(|server| server.name));
        }
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "a name stands for one server");
        assert!(count >= 12, "{names:?}");
    }
}
