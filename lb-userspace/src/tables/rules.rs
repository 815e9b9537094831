//! The lists of rules of the services: which clients are let in (`lb_common::rules`).

use anyhow::{Result, ensure};
use lb_common::layout::{MAX_RULES, Rule, RuleLine};

use super::{Outer, Tables};

/// Rules in one line of a list.
const LINE: usize = size_of::<RuleLine>() / size_of::<Rule>();

impl Tables {
    /// The rules of a service, in their order; if there are none, all clients are let in.
    pub fn rules(&self, service: u16) -> Vec<Rule> {
        let Some(list) = self.rules.of(service) else { return Vec::new() };
        let rules = (0..list.len()).flat_map(|line| list.read(line));
        rules.take_while(|rule| rule.verdict != 0).collect()
    }

    /// Gives a service another list of rules. The kernel program goes by the old list or by the new
    /// one, never by a mixture.
    pub(super) fn set_rules(&self, service: u16, rules: &[Rule]) -> Result<()> {
        ensure!(rules.len() <= MAX_RULES as usize, "{} rules, at most {MAX_RULES} are possible", rules.len());
        if self.rules(service) == rules {
            return Ok(());
        }
        if rules.is_empty() {
            return self.remove(&self.rules, service);
        }
        let list = self.make::<RuleLine>(Outer::Rules, rules.len().div_ceil(LINE) as u32)?;
        for (number, chunk) in rules.chunks(LINE).enumerate() {
            let mut line = RuleLine::default();
            line[..chunk.len()].copy_from_slice(chunk);
            list.table.publish(number, &line, 0);
        }
        self.replace(&self.rules, service, list)
    }
}
