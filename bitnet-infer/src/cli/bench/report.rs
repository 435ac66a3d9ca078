//! What `bench` prints.

use std::fmt::Write;

use serde::Serialize;

use bitnet_infer::engine::{HeadFormat, KvType};

use super::machine::Machine;
use super::measure::Row;
use crate::cli::output;

/// All of a run.
#[derive(Serialize)]
pub struct Report {
    pub model: String,
    pub weights: String,
    pub parameters: u64,
    pub weight_bytes_per_token: usize,
    /// How ternary codes are held; null for a model that has none.
    pub ternary: Option<String>,
    pub head: HeadFormat,
    pub kv: KvType,
    pub load_seconds: f64,
    /// The most memory that the process has held, where the system tells it.
    pub peak_memory_bytes: Option<usize>,
    pub machine: Machine,
    pub rows: Vec<Row>,
}

impl Report {
    /// For people: a table, and where the time of each test went.
    pub fn text(&self) -> String {
        let machine = &self.machine;
        let peak = self.peak_memory_bytes.map(|bytes| format!(", peak memory {}", output::bytes(bytes)));
        let mut text = format!(
            "model    {} ({} parameters), {}, ready in {:.1} s{}\n\
             machine  {}, threads {}, kernel {}{}\n\
             limits   {:.1} GB/s read from memory; {:.0} GMAC/s on weights in cache\n\
             weights  {} read for every decoded token; head {}; keys and values in {}\n\n\
             {:<12}{:>10}{:>10}{:>12}{:>10}{:>14}\n",
            self.model,
            output::count(self.parameters),
            self.weights,
            self.load_seconds,
            peak.unwrap_or_default(),
            machine.cpu,
            machine.threads,
            machine.kernel,
            self.ternary.as_ref().map_or_else(String::new, |ternary| format!(", ternary {ternary}")),
            machine.read_gb_per_s,
            machine.kernel_gmac_per_s,
            output::bytes(self.weight_bytes_per_token),
            self.head,
            self.kv,
            "test",
            "tok/s",
            "GB/s",
            "of memory",
            "GMAC/s",
            "of the kernel"
        );
        for row in &self.rows {
            let (memory, kernel) = (row.gb_per_s / machine.read_gb_per_s, row.gmac_per_s / machine.kernel_gmac_per_s);
            let _ = writeln!(
                text,
                "{:<12}{:>10.1}{:>10.1}{:>11.0}%{:>10.1}{:>13.0}%",
                row.test,
                row.tok_per_s,
                row.gb_per_s,
                memory * 100.0,
                row.gmac_per_s,
                kernel * 100.0
            );
        }
        text += "\ntime by operation, percent\n";
        for row in &self.rows {
            let shares = row.shares.iter().filter(|share| share.percent >= 0.5);
            let shares: Vec<_> = shares.map(|share| format!("{} {:.0}", share.operation, share.percent)).collect();
            let _ = writeln!(text, "{:<12}{}", row.test, shares.join(", "));
        }
        text
    }
}
