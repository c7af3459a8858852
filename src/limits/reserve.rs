//! What the room left on a device allows, without flapping when it lies at a line.

/// What may still be done with the room that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Room {
    /// Too little even to go on following: no more entries are taken, so that what is there can be read and tidied.
    None = 0,
    /// The reserve has been touched: what was begun is finished, nothing new is begun.
    Little = 1,
    /// Everything.
    Enough = 2,
}

impl Room {
    /// The room with this number; one that nobody gave counts as enough.
    pub fn from_number(number: u8) -> Room {
        match number {
            0 => Room::None,
            1 => Room::Little,
            _ => Room::Enough,
        }
    }
}

/// Bytes kept free on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    bytes: u64,
}

impl Reserve {
    /// A reserve of this size; 0 never runs out.
    pub fn new(bytes: u64) -> Reserve {
        Reserve { bytes }
    }

    /// The room there is with `free` bytes left, after it was `before`. A line is crossed downwards as soon as it is
    /// reached, and upwards only a quarter beyond it: compaction alone moves the figure to and fro.
    pub fn judge(self, before: Room, free: u64) -> Room {
        let half = self.bytes / 2;
        let line = |bytes: u64, crossed: bool| if crossed { bytes.saturating_add(bytes / 4) } else { bytes };
        if free < line(half, before == Room::None) {
            Room::None
        } else if free < line(self.bytes, before != Room::Enough) {
            Room::Little
        } else {
            Room::Enough
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_shrinks_at_once_and_grows_back_a_quarter_later() {
        let reserve = Reserve::new(800);
        let mut room = Room::Enough;
        let mut after = |free| {
            room = reserve.judge(room, free);
            room
        };
        assert_eq!(after(800), Room::Enough);
        assert_eq!(after(799), Room::Little);
        assert_eq!([after(800), after(999)], [Room::Little; 2]);
        assert_eq!(after(1_000), Room::Enough);
        assert_eq!(after(400), Room::Little);
        assert_eq!(after(399), Room::None);
        assert_eq!([after(400), after(499)], [Room::None; 2]);
        assert_eq!(after(500), Room::Little);
        assert_eq!(after(0), Room::None);
        assert_eq!(after(900), Room::Little, "out of the worst, not yet of the reserve");
        assert_eq!(after(u64::MAX), Room::Enough);
    }

    #[test]
    fn no_reserve_is_never_touched() {
        assert_eq!(Reserve::new(0).judge(Room::Enough, 0), Room::Enough);
    }

    #[test]
    fn numbers_mean_what_they_did() {
        for room in [Room::None, Room::Little, Room::Enough] {
            assert_eq!(Room::from_number(room as u8), room);
        }
    }
}
