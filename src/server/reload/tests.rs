use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::symlink,
    process::Command,
    sync::{
        RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use tempfile::TempDir;

use super::*;

fn paths(of: &[&Path]) -> impl Fn(&Contents) -> Vec<PathBuf> + Send + 'static {
    let paths: Vec<_> = of.iter().map(|path| path.to_path_buf()).collect();
    move |_| paths.clone()
}

fn set_of<F: Fn(&Contents) -> Vec<PathBuf>>(files: F) -> SetReader<F> {
    SetReader { files, read: Arc::new(read_file), pending: HashMap::new() }
}

fn read_set(files: impl Fn(&Contents) -> Vec<PathBuf>) -> ReadSet {
    set_of(files).read()
}

/// One file, and what of it is in use.
struct One {
    _directory: TempDir,
    path: PathBuf,
    in_use: Arc<Mutex<Vec<u8>>>,
    metrics: FileMetrics,
}

type How<'a> = &'a dyn Fn(&Path);
type Apply = Box<dyn FnMut(&Contents) -> anyhow::Result<Applied> + Send>;

impl One {
    /// A file of which only what begins with `good` can be used.
    fn new() -> (Self, FileSet<Apply>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "good 1").unwrap();
        let metrics = ReloadMetrics::default().of("test");
        let in_use = Arc::<Mutex<Vec<u8>>>::default();
        let (to, of) = (Arc::clone(&in_use), path.clone());
        let apply: Apply = Box::new(move |contents| {
            let bytes = contents.get(&of)?;
            ensure!(bytes.starts_with(b"good"), "not good");
            *to.lock().unwrap() = bytes.to_vec();
            Ok(if bytes.ends_with(b"but") { Applied::AllBut("but".into()) } else { Applied::Whole })
        });
        let contents = read_set(paths(&[&path])).unwrap().unwrap();
        let set = FileSet::start("test", apply, metrics.clone(), &contents).unwrap();
        (Self { _directory: directory, path, in_use, metrics }, set)
    }

    fn look(&self, set: &mut FileSet<Apply>) {
        set.follow(read_set(paths(&[&self.path])).map(|read| read.expect("it stands still")));
    }

    fn seen(&self) -> (String, u64, u64, i64) {
        let in_use = String::from_utf8(self.in_use.lock().unwrap().clone()).unwrap();
        let FileMetrics { applied, failed, stale } = &self.metrics;
        (in_use, applied.get(), failed.get(), stale.get())
    }
}

#[test]
fn a_changed_file_is_used_and_a_bad_one_is_reported_once() {
    let (one, mut set) = One::new();
    one.look(&mut set);
    assert_eq!(one.seen(), ("good 1".into(), 0, 0, 0));
    fs::write(&one.path, "good 2").unwrap();
    one.look(&mut set);
    one.look(&mut set);
    assert_eq!(one.seen(), ("good 2".into(), 1, 0, 0));
    fs::write(&one.path, "bad").unwrap();
    one.look(&mut set);
    one.look(&mut set);
    assert_eq!(one.seen(), ("good 2".into(), 1, 1, 1));
    fs::write(&one.path, "worse").unwrap();
    one.look(&mut set);
    assert_eq!(one.seen(), ("good 2".into(), 1, 2, 1));
    // What is in use is good, so it is not applied again.
    fs::write(&one.path, "good 2").unwrap();
    one.look(&mut set);
    assert_eq!(one.seen(), ("good 2".into(), 1, 2, 0));
    fs::write(&one.path, "bad").unwrap();
    one.look(&mut set);
    fs::write(&one.path, "good 3").unwrap();
    one.look(&mut set);
    assert_eq!(one.seen(), ("good 3".into(), 2, 3, 0));
}

#[test]
fn what_is_used_in_part_is_used_once_and_what_was_before_is_used_again() {
    let (one, mut set) = One::new();
    fs::write(&one.path, "good 2 but").unwrap();
    one.look(&mut set);
    one.look(&mut set);
    assert_eq!(one.seen(), ("good 2 but".into(), 0, 1, 1));
    fs::write(&one.path, "good 1").unwrap();
    one.look(&mut set);
    assert_eq!(one.seen(), ("good 1".into(), 1, 1, 0));
}

#[test]
fn what_is_no_small_regular_file_changes_nothing_and_holds_nothing_up() {
    let (one, mut set) = One::new();
    let replace = |how: &dyn Fn(&Path)| {
        let _ = fs::remove_file(&one.path);
        let _ = fs::remove_dir(&one.path);
        how(&one.path);
    };
    let began = Instant::now();
    let make_pipe =
        |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let make_large = |path: &Path| File::create(path).unwrap().set_len(100 << 20).unwrap();
    let one_byte_too_many = |path: &Path| {
        File::create(path).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
    };
    let cases: [(&str, How); 7] = [
        ("not a regular file", &make_pipe),
        ("not a regular file", &|path| fs::create_dir(path).unwrap()),
        ("larger than 1024 KiB", &make_large),
        ("larger than 1024 KiB", &one_byte_too_many),
        ("No such file", &|_| {}),
        ("not good", &|path| fs::write(path, "").unwrap()),
        ("No such device", &|path| {
            std::os::unix::net::UnixListener::bind(path).unwrap();
        }),
    ];
    for (expected, how) in cases {
        replace(how);
        let contents = read_set(paths(&[&one.path])).unwrap().unwrap();
        let why = contents.failure().unwrap_or("not good").to_owned();
        assert!(why.contains(expected), "{why}");
        one.look(&mut set);
        let (in_use, applied, _, stale) = one.seen();
        assert_eq!((in_use.as_str(), applied, stale), ("good 1", 0, 1), "{expected}");
    }
    assert!(began.elapsed() < READ_TIMEOUT, "{:?}", began.elapsed());
    replace(&|path| fs::write(path, "good 2").unwrap());
    one.look(&mut set);
    let (in_use, applied, _, stale) = one.seen();
    assert_eq!((in_use.as_str(), applied, stale), ("good 2", 1, 0));
}

#[test]
fn a_set_that_changes_while_it_is_read_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
    fs::write(&first, "0").unwrap();
    fs::write(&second, "0").unwrap();
    // The first file changes between the reading of both, as often as `left` says.
    let left = AtomicUsize::new(MAX_PASSES);
    let files = |contents: &Contents| {
        let is_between = contents.get(&first).is_ok() && contents.get(&second).is_err();
        if is_between && left.load(Ordering::Relaxed) > 0 {
            fs::write(&first, left.fetch_sub(1, Ordering::Relaxed).to_string()).unwrap();
        }
        let both = [first.clone(), second.clone()];
        both.into_iter().take(1 + usize::from(contents.get(&first).is_ok())).collect()
    };
    assert!(read_set(files).unwrap().is_none());
    left.store(1, Ordering::Relaxed);
    fs::write(&first, "0").unwrap();
    let contents = read_set(files).unwrap().unwrap();
    assert_eq!(contents.get(&first).unwrap(), b"1");
    assert!(contents.get(Path::new("third")).is_err());
}

#[test]
fn a_file_that_hangs_keeps_no_other_from_being_read() {
    let directory = tempfile::tempdir().unwrap();
    let [good, hung, other] = ["good", "hung", "other"].map(|name| directory.path().join(name));
    for path in [&good, &hung, &other] {
        fs::write(path, "1").unwrap();
    }
    // Who reads a hung file waits for this.
    let mount = Arc::new(RwLock::new(()));
    let began = Arc::<AtomicUsize>::default();
    let (of, count) = (Arc::clone(&mount), Arc::clone(&began));
    let read: ReadFile = Arc::new(move |path| {
        if !path.ends_with("good") {
            count.fetch_add(1, Ordering::Relaxed);
            drop(of.read().unwrap());
        }
        read_file(path)
    });
    // Hung files are named before and after the good one.
    let mut set = SetReader { read, ..set_of(paths(&[&good, &hung, &other])) };
    let is_hung = |contents: &Contents| {
        [&hung, &other].map(|path| contents.get(path).unwrap_err().to_string().contains(TIMED_OUT))
    };
    let unmounted = mount.write().unwrap();
    let start = Instant::now();
    let contents = set.read().unwrap().unwrap();
    assert_eq!((contents.get(&good).unwrap(), is_hung(&contents)), (&b"1"[..], [true; 2]));
    // Both shared one limit.
    assert!(start.elapsed() < 2 * READ_TIMEOUT, "{:?}", start.elapsed());
    // From then on nothing waits for them, and no more threads do.
    let start = Instant::now();
    for content in ["2", "3", "4"] {
        fs::write(&good, content).unwrap();
        let contents = set.read().unwrap().unwrap();
        let read = contents.get(&good).unwrap();
        assert_eq!((read, is_hung(&contents)), (content.as_bytes(), [true; 2]));
    }
    assert!(start.elapsed() < READ_TIMEOUT, "{:?}", start.elapsed());
    assert_eq!(began.load(Ordering::Relaxed), 2);
    // What has changed meanwhile is read again.
    fs::write(&hung, "5").unwrap();
    drop(unmounted);
    let contents = loop {
        if let Some(contents) = set.read().unwrap().filter(|read| read.failure().is_none()) {
            break contents;
        }
    };
    assert_eq!([&hung, &other].map(|path| contents.get(path).unwrap()), [b"5", b"1"]);
}

#[test]
fn files_that_hang_have_a_bounded_number_of_threads() {
    let mount = Arc::new(RwLock::new(()));
    let of = Arc::clone(&mount);
    let read: ReadFile = Arc::new(move |path| {
        drop(of.read().unwrap());
        read_file(path)
    });
    // Each reading names other files.
    let reading = AtomicUsize::new(0);
    let files = |_: &Contents| {
        let name = |file| format!("/none/{}-{file}", reading.load(Ordering::Relaxed)).into();
        (0..MAX_FILES).map(name).collect()
    };
    let mut set = SetReader { read, ..set_of(files) };
    let unmounted = mount.write().unwrap();
    assert!(set.read().unwrap().unwrap().failure().unwrap().contains(TIMED_OUT));
    reading.store(1, Ordering::Relaxed);
    let contents = set.read().unwrap().unwrap();
    assert!(contents.failure().unwrap().contains("too many other files"));
    assert_eq!(set.pending.len(), MAX_FILES);
    drop(unmounted);
    // Their threads end.
    let is_free = |contents: Contents| contents.failure().unwrap().contains("No such file");
    while !set.read().unwrap().is_some_and(is_free) {}
}

/// A write of them may be too slow for ever.
#[tokio::test(start_paused = true)]
async fn files_that_do_not_stop_changing_are_reported() {
    let (one, mut set) = One::new();
    let reads = AtomicUsize::new(0);
    let read: ReadFile = Arc::new(move |_| {
        let read = reads.fetch_add(1, Ordering::Relaxed);
        Ok(format!("good {read}").into_bytes())
    });
    let changing = SetReader { read, ..set_of(paths(&[&one.path])) };
    let mut reader = Reader(Arc::new(Mutex::new(changing)));
    let read = reader.read().await;
    let why = read.as_ref().err().map(ToString::to_string);
    assert_eq!(why.as_deref(), Some("the files keep changing while they are read"));
    set.follow(read);
    assert_eq!(one.seen(), ("good 1".into(), 0, 1, 1));
    one.look(&mut set);
    assert_eq!(one.seen(), ("good 1".into(), 0, 1, 0), "they have stopped");
}

#[test]
fn a_volume_of_kubernetes_is_read_as_one() {
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path();
    for version in ["..1", "..2"] {
        fs::create_dir(volume.join(version)).unwrap();
        fs::write(volume.join(version).join("tls.crt"), format!("certificate {version}")).unwrap();
        fs::write(volume.join(version).join("tls.key"), format!("key {version}")).unwrap();
    }
    symlink("..1", volume.join("..data")).unwrap();
    let [certificate, key] = ["tls.crt", "tls.key"].map(|name| {
        symlink(Path::new("..data").join(name), volume.join(name)).unwrap();
        volume.join(name)
    });
    let swap = || {
        symlink("..2", volume.join("..new")).unwrap();
        fs::rename(volume.join("..new"), volume.join("..data")).unwrap();
        fs::remove_dir_all(volume.join("..1")).unwrap();
    };
    let swapped = Mutex::new(false);
    let files = |contents: &Contents| {
        if contents.get(&certificate).is_err() {
            return vec![certificate.clone()];
        }
        if contents.get(&key).is_err() && !std::mem::replace(&mut *swapped.lock().unwrap(), true) {
            swap();
        }
        vec![certificate.clone(), key.clone()]
    };
    // Not the old certificate and the new key.
    let contents = read_set(files).unwrap().unwrap();
    assert!(*swapped.lock().unwrap());
    assert_eq!(contents.get(&certificate).unwrap(), b"certificate ..2");
    assert_eq!(contents.get(&key).unwrap(), b"key ..2");
}

#[test]
fn a_file_names_others_but_not_without_end() {
    let directory = tempfile::tempdir().unwrap();
    let at = |number: usize| directory.path().join(number.to_string());
    for number in 0..=MAX_FILES {
        fs::write(at(number), number.to_string()).unwrap();
    }
    let chain = |most: usize| {
        move |contents: &Contents| (0..=contents.0.len().min(most - 1)).map(at).collect()
    };
    let contents = read_set(chain(3)).unwrap().unwrap();
    assert_eq!(contents.0.len(), 3);
    let why = read_set(chain(usize::MAX)).err().unwrap().to_string();
    assert_eq!(why, "more than 64 files");
}

#[tokio::test]
async fn a_request_reads_at_once_and_the_first_reading_must_succeed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let stop = CancellationToken::new();
    let reloader = Reloader::new(Duration::from_hours(1), ReloadMetrics::default(), stop.clone());
    let missing =
        reloader.watch("test", paths(&[&path]), |_| Ok(Applied::Whole)).await.unwrap_err();
    assert!(format!("{missing:#}").contains("No such file"), "{missing:#}");
    OpenOptions::new().create_new(true).write(true).open(&path).unwrap().write_all(b"1").unwrap();
    let (seen, mut updates) = watch::channel(Vec::new());
    let of = path.clone();
    let apply = move |contents: &Contents| {
        seen.send_replace(contents.get(&of)?.to_vec());
        Ok(Applied::Whole)
    };
    reloader.watch("test", paths(&[&path]), apply).await.unwrap();
    assert_eq!(*updates.borrow_and_update(), b"1");
    fs::write(&path, "2").unwrap();
    reloader.reload();
    updates.changed().await.unwrap();
    assert_eq!(*updates.borrow_and_update(), b"2");
    // The task ends, and what it held with it.
    stop.cancel();
    assert!(updates.changed().await.is_err());
}

#[tokio::test]
async fn a_poll_finds_a_change() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "1").unwrap();
    let (interval, metrics) = (Duration::from_millis(5), ReloadMetrics::default());
    let reloader = Reloader::new(interval, metrics.clone(), CancellationToken::new());
    let (seen, mut updates) = watch::channel(Vec::new());
    let of = path.clone();
    let apply = move |contents: &Contents| {
        seen.send_replace(contents.get(&of)?.to_vec());
        Ok(Applied::Whole)
    };
    reloader.watch("test", paths(&[&path]), apply).await.unwrap();
    fs::write(&path, "2").unwrap();
    updates.wait_for(|seen| seen == b"2").await.unwrap();
    assert_eq!(metrics.of("test").stale.get(), 0);
}
