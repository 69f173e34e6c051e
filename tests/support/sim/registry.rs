//! What was really signed. Whatever is not in here does not verify, which is all that a simulation
//! needs of signatures; their sizes are those of the real ones, so that datagrams fill as they do.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use nodosum::unversioned::{
    record::{Record, SignedRecord, VerifiedRecord},
    swim::{ForcedLeave, SignedEvent, UserEvent, VerifiedEvent},
};

/// A usual size of an ECDSA P-256 signature in DER.
const SIGNATURE_BYTES: usize = 71;

/// Everything signed in a run. Records are looked up by their bytes and never enumerated.
#[derive(Default)]
pub(crate) struct Registry {
    records: HashMap<Arc<[u8]>, Arc<VerifiedRecord>>,
    forced: BTreeSet<Vec<u8>>,
    /// Every event emitted, by the bytes that its origin signed, and in their order.
    is_event: BTreeSet<Arc<[u8]>>,
    events: Vec<SignedEvent>,
}

fn signature(bytes: &[u8]) -> Vec<u8> {
    let mut word = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut out = Vec::with_capacity(SIGNATURE_BYTES);
    while out.len() < SIGNATURE_BYTES {
        word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
        out.push(word as u8);
    }
    out
}

impl Registry {
    pub(crate) fn sign(&mut self, record: Record) -> Arc<VerifiedRecord> {
        let payload: Arc<[u8]> = record.encode().into();
        let signature = signature(&payload).into();
        let signed = SignedRecord { payload, signature };
        let verified = Arc::new(VerifiedRecord { record, signed });
        let key = Arc::clone(&verified.signed.payload);
        self.records.insert(key, Arc::clone(&verified));
        verified
    }

    /// The record, if exactly this was signed.
    pub(crate) fn find(&self, signed: &SignedRecord) -> Option<&Arc<VerifiedRecord>> {
        self.records
            .get(&signed.payload)
            .filter(|record| record.signed.signature == signed.signature)
    }

    pub(crate) fn sign_forced(&mut self, forced: &ForcedLeave) -> Vec<u8> {
        let bytes = forced.signed_bytes();
        let signature = signature(&bytes);
        self.forced.insert(bytes);
        signature
    }

    pub(crate) fn is_forced_signed(&self, forced: &ForcedLeave) -> bool {
        let bytes = forced.signed_bytes();
        signature(&bytes) == forced.signature && self.forced.contains(&bytes)
    }

    pub(crate) fn sign_event(&mut self, event: UserEvent) -> VerifiedEvent {
        let payload: Arc<[u8]> = event.encode().into();
        let signature = signature(&payload).into();
        let signed = SignedEvent { payload, signature };
        if self.is_event.insert(Arc::clone(&signed.payload)) {
            self.events.push(signed.clone());
        }
        VerifiedEvent { event, signed }
    }

    pub(crate) fn is_event_signed(&self, signed: &SignedEvent) -> bool {
        self.is_event.contains(&signed.payload) && *signed.signature == *signature(&signed.payload)
    }

    /// Whether an event was emitted exactly as it is told.
    pub(crate) fn is_emitted(&self, event: &UserEvent) -> bool {
        self.is_event.contains(&*event.encode())
    }

    /// An event of any time; the same number chooses the same.
    pub(crate) fn some_event(&self, number: u64) -> Option<&SignedEvent> {
        let place = number.checked_rem(self.events.len() as u64)? as usize;
        self.events.get(place)
    }
}
