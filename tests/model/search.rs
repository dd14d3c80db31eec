//! Goes through everything that can happen in a small world, breadth first.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use super::actions::Action;
use super::setup::Setup;
use super::world::World;

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) states: usize,
    pub(super) depth: usize,
    /// The shortest way to something that must not be.
    pub(super) violation: Option<(String, Vec<Action>)>,
    /// Not everything was seen: there are more states than were allowed.
    pub(super) is_cut: bool,
}

/// Two hashes side by side: states are told apart by 128 bits, and kept only while they wait.
struct Fingerprint(u64, u64);

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        self.1 = (self.1 ^ word.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.1 ^= self.1 >> 29;
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word.unsigned_abs() as u64);
    }
}

type Print = (u64, u64);

/// Each state with the one it was first reached from, and by which of its actions.
type Known = HashMap<Print, (Print, u16)>;

fn fingerprint(world: &World) -> Print {
    let mut hasher = Fingerprint(0, 0);
    world.hash(&mut hasher);
    (hasher.0, hasher.1)
}

/// Explores at most so many states.
pub(super) fn explore(setup: &Setup, most: usize) -> Found {
    let first = World::new(setup);
    let mut known = Known::new();
    let start = fingerprint(&first);
    known.insert(start, (start, u16::MAX));
    let mut level = vec![(first, start)];
    let mut found = Found {
        states: 1,
        depth: 0,
        violation: None,
        is_cut: false,
    };
    while !level.is_empty() {
        let mut next_level = Vec::new();
        for (world, here) in level {
            for (number, action) in world.actions(setup).into_iter().enumerate() {
                match world.after(setup, action) {
                    Ok(None) => {}
                    Ok(Some(next)) => {
                        let print = fingerprint(&next);
                        let number = u16::try_from(number).unwrap();
                        if known.len() < most {
                            known.entry(print).or_insert_with(|| {
                                next_level.push((next, print));
                                (here, number)
                            });
                        } else {
                            found.is_cut = true;
                        }
                    }
                    Err(fault) => {
                        let mut way = replay(setup, &known, start, here);
                        way.push(action);
                        found.violation = Some((fault, way));
                        found.states = known.len();
                        return found;
                    }
                }
            }
        }
        found.depth += 1;
        level = next_level;
    }
    found.states = known.len();
    found
}

/// The actions that lead to a state.
fn replay(setup: &Setup, known: &Known, start: Print, mut at: Print) -> Vec<Action> {
    let mut numbers = Vec::new();
    while at != start {
        let (before, number) = known[&at];
        numbers.push(number);
        at = before;
    }
    let mut world = World::new(setup);
    let mut way = Vec::new();
    for number in numbers.into_iter().rev() {
        let action = world.actions(setup)[usize::from(number)];
        world = world.after(setup, action).unwrap().unwrap();
        way.push(action);
    }
    way
}
