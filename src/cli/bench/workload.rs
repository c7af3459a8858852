//! What a benchmark asks for: which operations in which shares, on which keys, with which values. Pure and seeded.
//!
//! Keys are numbers below `keys`, chosen uniformly or after Zipf's law (Gray et al. 1994, as YCSB does it, the ranks
//! scattered over the key space so that hot keys are not neighbours). Single keys are `key0000000042`; the members of a
//! batch or scan share the tag of their number, `{batch0000000042}:03`. Orders are documents as the service of orders keeps
//! them, each of one user for ever, who has [`ORDERS_OF_USER`] of them.

use std::str::FromStr;

use bytes::{BufMut, Bytes, BytesMut};

/// Keys in one atomic batch.
pub const BATCH_KEYS: u64 = 10;
/// Most rows one scan asks for (and rows that `--load` puts under each scanned tag).
pub const SCAN_ROWS_MAX: u64 = 100;
/// Tags that scans choose from: so many that they are no single hot spot, so few that loading them is quick.
const SCAN_TAGS_MAX: u64 = 1_000;
/// Orders of one user, about.
pub const ORDERS_OF_USER: u64 = 20;
/// Bytes of random data that values are cut from, besides one value's length.
const POOL_BYTES: usize = 1 << 20;

/// A small fast generator of numbers (SplitMix64, Steele et al. 2014): one per worker, the same for the same seed.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// The next number below `bound`, which is above 0 (multiply-shift; the bias is below 2^-32 for the bounds here).
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// The next number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn mix(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// How keys are chosen, as typed: `uniform` or `zipfian:0.99`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Every key is as likely as any other.
    Uniform,
    /// The key of rank r is chosen in proportion to 1 / r^theta.
    Zipfian(f64),
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Distribution, String> {
        let theta = match text.split_once(':') {
            None if text == "uniform" => return Ok(Distribution::Uniform),
            None if text == "zipfian" => 0.99,
            Some(("zipfian", theta)) => theta.parse().map_err(|_| format!("'{theta}' is no number"))?,
            _ => return Err(format!("'{text}' is no distribution: write uniform or zipfian:0.99")),
        };
        if theta > 0.0 && theta < 1.0 {
            Ok(Distribution::Zipfian(theta))
        } else {
            Err("zipfian needs a theta between 0 and 1 (exclusive), such as 0.99".to_owned())
        }
    }
}

impl std::fmt::Display for Distribution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Distribution::Uniform => write!(f, "uniform"),
            Distribution::Zipfian(theta) => write!(f, "zipfian:{theta}"),
        }
    }
}

/// Chooses numbers below a bound.
#[derive(Clone, Debug)]
pub struct Chooser {
    bound: u64,
    zipf: Option<Zipf>,
}

/// What the inversion after Gray needs, computed once.
#[derive(Clone, Copy, Debug)]
struct Zipf {
    alpha: f64,
    zeta: f64,
    eta: f64,
    half: f64,
}

impl Chooser {
    /// Chooses below `bound`, which is above 0.
    pub fn new(distribution: Distribution, bound: u64) -> Chooser {
        let zipf = match distribution {
            Distribution::Uniform => None,
            Distribution::Zipfian(theta) => {
                let zeta_of = |n: u64| (1..=n).map(|rank| (rank as f64).powf(-theta)).sum::<f64>();
                let zeta = zeta_of(bound);
                let eta = (1.0 - (2.0 / bound as f64).powf(1.0 - theta)) / (1.0 - zeta_of(2.min(bound)) / zeta);
                Some(Zipf { alpha: 1.0 / (1.0 - theta), zeta, eta, half: 1.0 + 0.5f64.powf(theta) })
            }
        };
        Chooser { bound, zipf }
    }

    /// The next choice.
    pub fn choose(&self, numbers: &mut Numbers) -> u64 {
        let Some(zipf) = &self.zipf else { return numbers.below(self.bound) };
        let unit = numbers.unit();
        let scaled = unit * zipf.zeta;
        let rank = if scaled < 1.0 || self.bound < 2 {
            0
        } else if scaled < zipf.half {
            1
        } else {
            let rank = self.bound as f64 * (zipf.eta * unit - zipf.eta + 1.0).powf(zipf.alpha);
            (rank as u64).min(self.bound - 1)
        };
        mix(rank ^ 0x5bd1_e995) % self.bound
    }
}

/// The kinds of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Read one key.
    Read,
    /// Set one key.
    Write,
    /// Read one key, then set it if it is still the version read.
    Cas,
    /// Add one to a counter.
    Incr,
    /// Read up to [`SCAN_ROWS_MAX`] rows of a tag, in order.
    Scan,
    /// Set [`BATCH_KEYS`] keys of one tag atomically.
    Batch,
    /// Set the document of an order.
    Order,
    /// Read the newest orders of a user from the view by user.
    List,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 8] =
        [Kind::Read, Kind::Write, Kind::Cas, Kind::Incr, Kind::Scan, Kind::Batch, Kind::Order, Kind::List];

    /// Its name in `--mix` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Cas => "cas",
            Kind::Incr => "incr",
            Kind::Scan => "scan",
            Kind::Batch => "batch10",
            Kind::Order => "order",
            Kind::List => "list",
        }
    }
}

/// The shares of the kinds, as typed: `read=95,write=5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    shares: Vec<(Kind, u64)>,
    total: u64,
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let mut shares: Vec<(Kind, u64)> = Vec::new();
        for part in text.split(',') {
            let (name, share) = part.split_once('=').unwrap_or((part, "1"));
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
                let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                format!("'{name}' is no operation: choose among {}", names.join(", "))
            })?;
            let share: u32 =
                share.parse().map_err(|_| format!("'{share}' is no share: write {name}=50, for instance"))?;
            if shares.iter().any(|(known, _)| *known == kind) {
                return Err(format!("'{name}' is named twice"));
            }
            shares.push((kind, u64::from(share)));
        }
        let total = shares.iter().map(|(_, share)| share).sum();
        if total == 0 { Err("all shares are 0".to_owned()) } else { Ok(Mix { shares, total }) }
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self.shares.iter().map(|(kind, share)| format!("{}={share}", kind.name())).collect();
        write!(f, "{}", parts.join(","))
    }
}

impl Mix {
    /// The kinds with a share.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.shares.iter().filter(|(_, share)| *share > 0).map(|(kind, _)| *kind)
    }

    /// Whether a kind has a share.
    pub fn has(&self, kind: Kind) -> bool {
        self.kinds().any(|own| own == kind)
    }

    fn choose(&self, numbers: &mut Numbers) -> Kind {
        if self.shares.len() == 1 {
            return self.shares[0].0;
        }
        let mut at = numbers.below(self.total);
        for (kind, share) in &self.shares {
            if at < *share {
                return *kind;
            }
            at -= share;
        }
        unreachable!("a number below the total of the shares falls into one of them")
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read this key.
    Read(Bytes),
    /// Set this key.
    Write(Bytes, Bytes),
    /// Read this key, then set it if unchanged.
    Cas(Bytes, Bytes),
    /// Add one to this counter.
    Incr(Bytes),
    /// Read so many rows of this tag.
    Scan(Bytes, u64),
    /// Set these keys at once.
    Batch(Vec<(Bytes, Bytes)>),
    /// Set this order to this document.
    Order(Bytes, Bytes),
    /// Read the newest orders of this user.
    List(Bytes),
}

impl Op {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Op::Read(_) => Kind::Read,
            Op::Write(..) => Kind::Write,
            Op::Cas(..) => Kind::Cas,
            Op::Incr(_) => Kind::Incr,
            Op::Scan(..) => Kind::Scan,
            Op::Batch(_) => Kind::Batch,
            Op::Order(..) => Kind::Order,
            Op::List(_) => Kind::List,
        }
    }
}

/// Everything that decides the operations of a run.
#[derive(Clone, Debug)]
pub struct Workload {
    mix: Mix,
    keys: Chooser,
    scans: Chooser,
    /// Rows of a scan; none: any number up to [`SCAN_ROWS_MAX`].
    scan_rows: Option<u64>,
    value_bytes: usize,
    /// Random data that values are slices of, so that making one copies nothing.
    pool: Bytes,
}

impl Workload {
    /// The workload of these settings; `keys` is above 0.
    pub fn new(mix: Mix, distribution: Distribution, keys: u64, value_bytes: usize, seed: u64) -> Workload {
        let mut numbers = Numbers::new(seed ^ 0x7461_6c6f_6f70);
        let pool: Vec<u8> = (0..POOL_BYTES + value_bytes).map(|_| numbers.next() as u8).collect();
        Workload {
            mix,
            keys: Chooser::new(distribution, keys),
            scans: Chooser::new(distribution, keys.min(SCAN_TAGS_MAX)),
            scan_rows: None,
            value_bytes,
            pool: pool.into(),
        }
    }

    /// The same with scans of so many rows each.
    pub fn with_scans_of(self, rows: Option<u64>) -> Workload {
        Workload { scan_rows: rows, ..self }
    }

    /// The next operation.
    pub fn next(&self, numbers: &mut Numbers) -> Op {
        match self.mix.choose(numbers) {
            Kind::Read => Op::Read(self.key(numbers)),
            Kind::Write => Op::Write(self.key(numbers), self.value(numbers)),
            Kind::Cas => Op::Cas(self.key(numbers), self.value(numbers)),
            Kind::Incr => Op::Incr(name("count", self.keys.choose(numbers))),
            Kind::Scan => {
                let tag = name("scan", self.scans.choose(numbers));
                Op::Scan(tag, self.scan_rows.unwrap_or_else(|| 1 + numbers.below(SCAN_ROWS_MAX)))
            }
            Kind::Batch => {
                let number = self.keys.choose(numbers);
                Op::Batch((0..BATCH_KEYS).map(|at| (member("batch", number, at), self.value(numbers))).collect())
            }
            Kind::Order => self.order(self.keys.choose(numbers), numbers),
            Kind::List => Op::List(self.user(self.keys.choose(numbers))),
        }
    }

    /// The writes that make every key of the mix exist before the measurement.
    pub fn load(&self) -> impl Iterator<Item = Op> + use<'_> {
        let mut numbers = Numbers::new(0x6c6f_6164);
        let singles = [Kind::Read, Kind::Write, Kind::Cas].into_iter().any(|kind| self.mix.has(kind));
        let single_keys = if singles { self.keys.bound } else { 0 };
        let scan_tags = if self.mix.has(Kind::Scan) { self.scans.bound } else { 0 };
        let rows = scan_tags * SCAN_ROWS_MAX;
        let orders = [Kind::Order, Kind::List].into_iter().any(|kind| self.mix.has(kind));
        let orders = if orders { self.keys.bound } else { 0 };
        (0..single_keys + rows + orders).map(move |at| {
            if at >= single_keys + rows {
                return self.order(at - single_keys - rows, &mut numbers);
            }
            let key = if at < single_keys {
                name("key", at)
            } else {
                member("scan", (at - single_keys) / SCAN_ROWS_MAX, (at - single_keys) % SCAN_ROWS_MAX)
            };
            Op::Write(key, self.value(&mut numbers))
        })
    }

    fn order(&self, number: u64, numbers: &mut Numbers) -> Op {
        let id = name("order", number);
        let document = order(&id, &self.user(number), numbers.next());
        Op::Order(id, document)
    }

    /// Whose order it is.
    pub fn user(&self, order: u64) -> Bytes {
        name("user", mix(order) % self.keys.bound.div_ceil(ORDERS_OF_USER))
    }

    fn key(&self, numbers: &mut Numbers) -> Bytes {
        name("key", self.keys.choose(numbers))
    }

    fn value(&self, numbers: &mut Numbers) -> Bytes {
        let at = numbers.below(POOL_BYTES as u64) as usize;
        self.pool.slice(at..at + self.value_bytes)
    }
}

/// The document of an order; what it costs and when it was placed follow from a number.
pub fn order(id: &[u8], user: &[u8], number: u64) -> Bytes {
    let text = |bytes| String::from_utf8_lossy(bytes);
    let (id, user) = (text(id), text(user));
    let (amount, created_ms) = (number % 100_000, 1_700_000_000_000 + number / 100_000 % 10_000_000_000);
    let (whole, cents) = (amount / 100, amount % 100);
    format!(
        concat!(
            r#"{{"order_id":"{id}","business_key":"cart-{id}","user_id":"{user}","status":"paid","amount":{whole}.{cents:02},"#,
            r#""items":[{{"product_id":"p-1","quantity":1,"price":{whole}.{cents:02}}}],"#,
            r#""created_ms":{created_ms},"updated_ms":{created_ms}}}"#
        ),
        id = id,
        user = user,
        whole = whole,
        cents = cents,
        created_ms = created_ms
    )
    .into()
}

/// Digits of a key's number: room for ten thousand million keys.
const NUMBER_DIGITS: usize = 10;

fn name(kind: &str, number: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(kind.len() + NUMBER_DIGITS);
    key.put_slice(kind.as_bytes());
    put_number(&mut key, number, NUMBER_DIGITS);
    key.freeze()
}

fn member(kind: &str, number: u64, at: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(kind.len() + NUMBER_DIGITS + 5);
    key.put_u8(b'{');
    key.put_slice(kind.as_bytes());
    put_number(&mut key, number, NUMBER_DIGITS);
    key.put_slice(b"}:");
    put_number(&mut key, at, 2);
    key.freeze()
}

/// Appends a number in decimal with leading zeros (the loop's own, since formatting machinery costs more than the call).
fn put_number(key: &mut BytesMut, number: u64, digits: usize) {
    let start = key.len();
    key.put_bytes(b'0', digits);
    let mut rest = number;
    for place in key[start..].iter_mut().rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn mixes_and_distributions_are_parsed_strictly() {
        assert_eq!("read=95,write=5".parse::<Mix>().expect("a mix").to_string(), "read=95,write=5");
        assert_eq!("batch10".parse::<Mix>().expect("a mix").to_string(), "batch10=1");
        for wrong in ["", "reads=1", "read=x", "read=0", "read=1,read=2", "read=-1"] {
            assert!(wrong.parse::<Mix>().is_err(), "{wrong}");
        }
        assert_eq!("zipfian:0.5".parse(), Ok(Distribution::Zipfian(0.5)));
        assert_eq!("zipfian".parse(), Ok(Distribution::Zipfian(0.99)));
        for wrong in ["", "zipf", "zipfian:1", "zipfian:0", "zipfian:x", "uniform:1"] {
            assert!(wrong.parse::<Distribution>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_mix_is_kept() {
        let workload = Workload::new("read=3,write=1".parse().expect("a mix"), Distribution::Uniform, 100, 8, 1);
        let mut numbers = Numbers::new(1);
        let reads = (0..40_000).filter(|_| workload.next(&mut numbers).kind() == Kind::Read).count();
        assert!((29_500..30_500).contains(&reads), "{reads}");
    }

    #[test]
    fn zipf_makes_a_few_keys_hot_and_uniform_none() {
        let hottest = |distribution| {
            let chooser = Chooser::new(distribution, 1_000);
            let mut numbers = Numbers::new(7);
            let mut counts: HashMap<u64, u32> = HashMap::new();
            for _ in 0..100_000 {
                let chosen = chooser.choose(&mut numbers);
                assert!(chosen < 1_000);
                *counts.entry(chosen).or_default() += 1;
            }
            counts.into_values().max().expect("some key")
        };
        assert!(hottest(Distribution::Uniform) < 180);
        // 1 / zeta(1000, 0.99) is 13 %.
        let zipf = hottest(Distribution::Zipfian(0.99));
        assert!((12_000..15_000).contains(&zipf), "{zipf}");
        for keys in [1, 2, 3] {
            let chooser = Chooser::new(Distribution::Zipfian(0.99), keys);
            let mut numbers = Numbers::new(7);
            assert!((0..1_000).all(|_| chooser.choose(&mut numbers) < keys));
        }
    }

    #[test]
    fn a_seed_names_one_run() {
        let run = |seed| {
            let mix = "read=1,write=1,cas=1,incr=1,scan=1,batch10=1".parse().expect("a mix");
            let workload = Workload::new(mix, Distribution::Zipfian(0.9), 50, 16, seed);
            let mut numbers = Numbers::new(seed);
            (0..100).map(|_| workload.next(&mut numbers)).collect::<Vec<_>>()
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }

    #[test]
    fn loading_covers_what_is_read() {
        let mix = "read=1,scan=1,batch10=1".parse().expect("a mix");
        let workload = Workload::new(mix, Distribution::Uniform, 20, 4, 1);
        let loaded: Vec<Bytes> =
            workload.load().map(|op| if let Op::Write(key, _) = op { key } else { Bytes::new() }).collect();
        assert_eq!(loaded.len(), 20 + 20 * 100);
        assert_eq!((&loaded[7][..], &loaded[20][..]), (&b"key0000000007"[..], &b"{scan0000000000}:00"[..]));
        let mut numbers = Numbers::new(1);
        for _ in 0..1_000 {
            match workload.next(&mut numbers) {
                Op::Read(key) => assert!(loaded.contains(&key)),
                Op::Scan(tag, rows) => {
                    assert!((1..=SCAN_ROWS_MAX).contains(&rows));
                    let first = [b"{", &tag[..], b"}:00"].concat();
                    assert!(loaded.iter().any(|key| key[..] == first));
                }
                Op::Batch(puts) => assert_eq!(puts.len() as u64, BATCH_KEYS),
                other => panic!("{other:?} is not in the mix"),
            }
        }
    }
}
