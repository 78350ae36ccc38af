//! What the threads of one server allocate: a test's figures are not those of the tests beside it.

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::AtomicIsize;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

thread_local! {
    /// Where this thread's allocations are counted.
    static COUNTED: Cell<Option<&'static Memory>> = const { Cell::new(None) };
}

/// All there are: what can be reached is no leak.
static ALL: Mutex<Vec<&'static Memory>> = Mutex::new(Vec::new());

/// What some threads have allocated since they are counted.
#[derive(Debug, Default)]
pub struct Memory {
    /// Calls of the allocator.
    calls: AtomicUsize,
    /// Bytes allocated and not freed; fewer than none where what was there before is freed.
    held: AtomicIsize,
    /// The most of them.
    most: AtomicIsize,
}

impl Memory {
    /// Never freed, for threads count until they end.
    pub fn new() -> &'static Self {
        let memory: &'static Self = Box::leak(Box::default());
        ALL.lock().unwrap().push(memory);
        memory
    }

    pub fn count_this_thread(&'static self) {
        COUNTED.set(Some(self));
    }

    /// Calls of the allocator so far.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Bytes held now.
    pub fn held(&self) -> isize {
        self.held.load(Ordering::SeqCst)
    }

    /// Bytes held now, from which on [`most`](Self::most) counts anew.
    pub fn begin(&self) -> isize {
        let held = self.held();
        self.most.store(held, Ordering::SeqCst);
        held
    }

    /// The most bytes that were held at a time.
    pub fn most(&self) -> isize {
        self.most.load(Ordering::SeqCst)
    }

    fn count(&self, more: isize) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let held = self.held.fetch_add(more, Ordering::SeqCst) + more;
        self.most.fetch_max(held, Ordering::SeqCst);
    }
}

struct Counting;

fn count(more: isize) {
    if let Ok(Some(memory)) = COUNTED.try_with(Cell::get) {
        memory.count(more);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count(len as isize - layout.size() as isize);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
