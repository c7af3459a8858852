//! Which runs are made by `--all`.

/// A run to be made.
#[derive(Clone)]
pub(super) struct Planned {
    /// The nemeses that strike at the same time.
    pub nemeses: Vec<String>,
    /// For how long.
    pub seconds: u64,
}

/// CI has a quarter of an hour: eight of these with the time before and after them.
const SHORT_SECONDS: u64 = 70;
/// Long enough for twenty strikes of each.
const LONG_SECONDS: u64 = 300;

/// Every family once.
const SHORT: [&str; 8] = [
    "kill,partition,packets",
    "pause,one-way",
    "power",
    "disk",
    "clock,answers,storm",
    "damage,wipe",
    "rolling,split",
    "membership,partition",
];

/// Every family alone, then the pairs that have found most elsewhere.
const LONG: [&str; 26] = [
    "kill",
    "kill-all",
    "pause",
    "partition",
    "one-way",
    "packets",
    "clock",
    "power",
    "power-all",
    "damage",
    "disk",
    "wipe",
    "answers",
    "rolling",
    "split",
    "membership",
    "storm",
    "kill,partition",
    "power,kill",
    "one-way,pause",
    "disk,kill",
    "split,kill",
    "membership,partition",
    "membership,storm",
    "storm,kill",
    "storm,answers",
];

/// The runs of `--all`.
pub(super) fn runs(long: bool) -> Vec<Planned> {
    let (names, seconds) = if long { (LONG.as_slice(), LONG_SECONDS) } else { (SHORT.as_slice(), SHORT_SECONDS) };
    names.iter().map(|names| Planned { nemeses: names.split(',').map(str::to_owned).collect(), seconds }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis;

    #[test]
    fn every_planned_nemesis_exists_and_every_family_is_planned() {
        for long in [false, true] {
            let planned: Vec<String> = runs(long).into_iter().flat_map(|run| run.nemeses).collect();
            for name in &planned {
                assert!(nemesis::named(name, |_| Ok(())).is_ok(), "{name}");
            }
            for nemesis in nemesis::all() {
                let family = nemesis.name().split_once('-').map_or(nemesis.name(), |(family, _)| family);
                let is_there = planned.iter().any(|name| name == family || name == nemesis.name());
                assert!(is_there, "{} is not planned", nemesis.name());
            }
        }
    }
}
