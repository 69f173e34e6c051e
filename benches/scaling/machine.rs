//! What a figure was measured on: without it no figure means anything.

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) fields: Vec<(&'static str, String)>,
}

impl Machine {
    /// `offloads`: what the program knows of batches of datagrams that the system takes and gives.
    /// `./run bench` tells the commit and the compiler.
    pub(crate) fn look(offloads: String) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
        let told = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let unknown = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mtu = read("/sys/class/net/lo/mtu");
        Self {
            fields: vec![
                ("cpu", unknown(cpu)),
                ("cores", cores.to_string()),
                (
                    "kernel",
                    read("/proc/sys/kernel/osrelease").trim().to_owned(),
                ),
                ("loopback_mtu", mtu.trim().to_owned()),
                ("offloads", offloads),
                ("rustc", unknown(told("NODOSUM_RUSTC"))),
                ("commit", unknown(told("NODOSUM_COMMIT"))),
            ],
        }
    }

    fn parts(&self) -> impl Iterator<Item = String> {
        let fields = self.fields.iter();
        fields.map(|(key, value)| format!("{} {value}", key.replace('_', " ")))
    }

    /// On one line, for people.
    pub(crate) fn line(&self) -> String {
        self.parts().collect::<Vec<_>>().join("; ")
    }

    /// On as many lines as it takes, for pictures.
    pub(crate) fn lines(&self, width: usize) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for part in self.parts() {
            match lines.last_mut() {
                Some(line) if line.len() + part.len() + 2 <= width => {
                    line.push_str("; ");
                    line.push_str(&part);
                }
                _ => lines.push(part),
            }
        }
        lines
    }
}
