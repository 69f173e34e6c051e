//! Queues of what a pure core has to say.
//!
//! They are empty nearly always, and long for a moment when a thousand members become known at once.

use std::collections::VecDeque;

/// An empty queue keeps room for so many.
const KEPT: usize = 64;

/// The next one. The last of many takes the room for them with it.
pub(crate) fn pop<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let next = queue.pop_front();
    if queue.is_empty() && queue.capacity() > KEPT {
        *queue = VecDeque::new();
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out_in_order_and_leaves_no_room_behind() {
        let mut queue: VecDeque<u32> = (0..1_000).collect();
        let out: Vec<u32> = std::iter::from_fn(|| pop(&mut queue)).collect();
        assert_eq!(out, (0..1_000).collect::<Vec<_>>());
        assert_eq!(queue.capacity(), 0);
        queue.push_back(1);
        assert_eq!((pop(&mut queue), pop(&mut queue)), (Some(1), None));
        assert!(queue.capacity() > 0, "a little is kept");
    }
}
