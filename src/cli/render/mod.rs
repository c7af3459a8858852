//! What the cluster and its data look like on a terminal: plain tables without lines, one idea a row.
//!
//! Everything here is a pure function from values to text or JSON. Versions are numbers of 64 bits, more than a JSON
//! number holds everywhere, so in JSON they are text. [`Table`] aligns columns; `data` shows keys, values and answers,
//! `cluster` shows nodes, tables and shards, `views` views.

mod cluster;
mod data;
mod order;
mod recovery;
mod views;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table as Grid};

pub use cluster::{
    balance, balance_json, balancing, balancing_json, checksum, checksum_json, node_json, nodes, owned, shard,
    shard_json, shards, status, status_json, table, table_json, tables,
};
pub use data::{change_json, change_line, get_json, history_table, not_applied, outcome_json, row_json, scan_table};
pub use order::{
    age, archived, archived_json, created_json, found_json, listed, listed_json, moved_json, order, order_line,
    product, product_json, set_up, set_up_json, stats, stats_json, trace,
};
pub use recovery::{recovery_applied, recovery_plan};
pub use views::{Finding, verification, verification_json, view, view_json, view_pausing, view_progress, views};

/// Rows under a header, the columns as wide as their widest cell.
pub struct Table {
    grid: Grid,
}

impl Table {
    /// A table with this header.
    pub fn new(header: &[&str]) -> Table {
        let mut grid = Grid::new();
        grid.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
        if !header.is_empty() {
            grid.set_header(header.iter().map(|name| name.to_uppercase()).collect::<Vec<_>>());
        }
        Table { grid }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.grid.add_row(cells);
    }

    /// The text, each line without blanks at its ends.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for line in self.grid.lines() {
            text.push_str(line.strip_prefix(' ').unwrap_or(&line).trim_end());
            text.push('\n');
        }
        text
    }
}
