//! Everything that a seed decides before the run begins. It is printed when a run fails.

use std::time::Duration;

use trivet::raft::{LogBounds, Timers};
use trivet::runtime::simulation::DiskPace;

use super::entropy::Random;
use super::network::Weather;
use super::views::ViewPlan;

/// What the nemesis does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A node's process ends; what it had not synced is lost, in part or whole.
    Crash,
    /// All nodes crash at once.
    CrashAll,
    /// A node stands still for a while.
    Pause,
    /// A node is cut off from all others, or from some.
    Partition,
    /// A link carries nothing one way.
    OneWay,
    /// Connections between two hosts break.
    Reset,
    /// The disk of a node is slow.
    SlowDisk,
    /// The links are slow and lossy.
    Storm,
    /// A node's wall clock jumps.
    Clock,
    /// A leader is asked to hand over.
    Transfer,
    /// The logs of a node are trimmed.
    Snapshot,
    /// A node loses its disk.
    Wipe,
    /// A node is stopped in order and started again.
    Restart,
    /// A shard is split.
    Split,
    /// Two shards are merged.
    Merge,
    /// A replica of a shard is to move to another node.
    Move,
    /// A node is to drain for a while.
    Drain,
    /// A node is told that another one is gone, which is not so.
    Verdict,
}

/// All faults.
pub const FAULTS: [Fault; 18] = [
    Fault::Crash,
    Fault::CrashAll,
    Fault::Pause,
    Fault::Partition,
    Fault::OneWay,
    Fault::Reset,
    Fault::SlowDisk,
    Fault::Storm,
    Fault::Clock,
    Fault::Transfer,
    Fault::Snapshot,
    Fault::Wipe,
    Fault::Restart,
    Fault::Split,
    Fault::Merge,
    Fault::Move,
    Fault::Drain,
    Fault::Verdict,
];

/// The parameters of one run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes.
    pub nodes: u64,
    /// Clients.
    pub clients: u64,
    /// Shards of the table.
    pub shards: u32,
    /// Learners of each of them, beside three voters.
    pub read_replicas: u32,
    /// Tags, each with some keys.
    pub tags: u64,
    /// Raft's timers.
    pub timers: Timers,
    /// How much log is kept.
    pub log: LogBounds,
    /// The disks when nothing is wrong with them.
    pub pace: DiskPace,
    /// The links when nothing is wrong with them.
    pub weather: Weather,
    /// Polls in a thousand that are put off.
    pub put_off_per_mille: u64,
    /// How far wall clocks are off at the beginning, at most, in milliseconds.
    pub skew_ms: u64,
    /// How long faults go on.
    pub storm: Duration,
    /// Between two faults.
    pub between: (Duration, Duration),
    /// How long a fault lasts.
    pub lasting: (Duration, Duration),
    /// The faults of this run.
    pub faults: Vec<Fault>,
    /// Between two calls of one client, at most.
    pub think: Duration,
    /// Views, if there are any.
    pub views: Option<ViewPlan>,
}

impl Plan {
    /// The plan of a seed; what concerns views is drawn apart, so that they leave all else as it was.
    pub fn draw(random: &mut Random, of_views: &mut Random) -> Plan {
        let ms = Duration::from_millis;
        let heartbeat = *random.pick(&[50, 100, 200]);
        let timers = Timers {
            heartbeat: ms(heartbeat),
            election_min: ms(3 * heartbeat + random.within(0, 50)),
            election_max: ms(5 * heartbeat + random.within(60, 200)),
        };
        let bytes_max = *random.pick(&[2 << 10, 8 << 10, 64 << 10]);
        let keep_bytes = *random.pick(&[0, 512, 4 << 10]);
        let sync = *random.pick(&[0, 1, 5, 20]);
        let latency = *random.pick(&[1, 5, 15]);
        let mut faults: Vec<Fault> = FAULTS.into_iter().filter(|_| random.per_mille(500)).collect();
        if faults.is_empty() {
            faults.push(Fault::Crash);
        }
        let nodes = match random.below(10) {
            0 | 1 => 5,
            2 | 3 => 4,
            _ => 3,
        };
        Plan {
            nodes,
            read_replicas: u32::from(nodes > 4),
            clients: random.within(3, 6),
            shards: u32::try_from(random.within(1, 2)).expect("small"),
            tags: random.within(2, 4),
            timers,
            log: LogBounds { bytes_max, keep_bytes, held_bytes_max: bytes_max / 4, held_keep_bytes: keep_bytes / 4 },
            pace: DiskPace { write: ms(sync / 4), sync: ms(sync), work: ms(random.below(3)) },
            weather: Weather {
                latency: (Duration::from_micros(200), ms(latency)),
                lost_per_mille: random.below(3),
                reset_per_100k: *random.pick(&[0, 20, 200]),
                noticed: (ms(200), ms(random.within(500, 4_000))),
            },
            put_off_per_mille: *random.pick(&[0, 5, 50]),
            skew_ms: *random.pick(&[0, 100, 5_000]),
            storm: ms(random.within(5_000, 14_000)),
            between: (ms(100), ms(random.within(300, 2_500))),
            lasting: (ms(50), ms(random.within(400, 4_000))),
            faults,
            think: ms(*random.pick(&[20, 60, 150])),
            views: ViewPlan::draw(of_views),
        }
    }
}
