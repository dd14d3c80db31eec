//! The seeds of the fuzz targets, and whatever the fuzzer has found, as ordinary tests.

use std::path::Path;

/// Every target's seeds, and all that comes of cutting and doubling them.
#[test]
fn seeds_keep_every_promise() {
    for (name, target) in fanfare::fuzzing::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fuzz/seeds")
            .join(name);
        let mut seeds = 0;
        for file in std::fs::read_dir(&folder).unwrap() {
            let seed = std::fs::read(file.unwrap().path()).unwrap();
            target(&seed);
            for end in 0..seed.len() {
                target(&seed[..end]);
                target(&seed[end..]);
            }
            target(&seed.repeat(2));
            seeds += 1;
        }
        assert!(seeds > 10, "{name} has {seeds} seeds");
    }
}
