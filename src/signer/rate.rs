//! The rules in force, with what each user has used up of their rates.

use std::sync::Arc;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::SignError;
use crate::access::{Per, Permit, Policy, Rate};

/// A policy, and what keeps the rates of its rules.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) policy: Policy,
    /// Of each rule in its order: how many of its permits each user has had lately.
    used: Vec<Option<Arc<Used>>>,
}

type Used = DefaultKeyedRateLimiter<u32>;

impl Rules {
    pub(super) fn new(policy: Policy) -> Self {
        let used = policy.rules().iter().map(|rule| rule.rate.map(nothing_used)).collect();
        Self { policy, used }
    }

    /// Rules that follow others: what is used up of a rule that stays as it was stays used up.
    pub(super) fn following(policy: Policy, before: &Self) -> Self {
        let mut rules = Self::new(policy);
        for (rule, used) in rules.policy.rules().iter().zip(&mut rules.used) {
            if let Some(same) = before.policy.rules().iter().position(|before| before == rule) {
                *used = before.used.get(same).cloned().flatten();
            }
        }
        rules
    }

    /// Takes a permit from what the user may still have of it.
    pub(super) fn spend(&self, permit: &Permit, uid: u32) -> Result<(), SignError> {
        let of_rule = permit.rule().checked_sub(1).and_then(|index| self.used.get(index));
        let Some(used) = of_rule.and_then(Option::as_ref) else { return Ok(()) };
        used.check_key(&uid)
            .map_err(|not_until| SignError::RateLimited { retry_after: not_until.wait_time_from(used.clock().now()) })
    }
}

fn nothing_used(rate: Rate) -> Arc<Used> {
    let quota = match rate.per {
        Per::Second => Quota::per_second(rate.number),
        Per::Minute => Quota::per_minute(rate.number),
    };
    Arc::new(RateLimiter::hashmap_with_clock(quota, DefaultClock::default()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::access::{Account, AccountEmail, Caller, Operation, Request, Rule};

    fn email() -> AccountEmail {
        "a@x".parse().unwrap()
    }

    fn rule(uid: u32, rate: Option<&str>) -> Rule {
        Rule {
            users: Some(vec![uid, 100]),
            accounts: vec![email()],
            operations: Operation::ALL.to_vec(),
            rate: rate.map(|rate| rate.parse().unwrap()),
            ..Rule::default()
        }
    }

    fn policy(rules: Vec<Rule>) -> Policy {
        Policy::new(vec![Account { email: email(), project_id: None, unique_id: None, default: true }], rules)
    }

    /// Whether a user is served now.
    fn ask(rules: &Rules, uid: u32) -> Result<(), SignError> {
        let account = email();
        let (audiences, scopes, claims) = (vec![], vec![], vec![]);
        let operation = Operation::SignDigest;
        let request = Request { account: &account, operation, audiences, scopes, claims, blob: None, lifetime: None };
        let permit = rules.policy.authorize(&Caller::new(uid, uid, vec![]), &request).unwrap();
        rules.spend(&permit, uid)
    }

    #[test]
    fn each_user_has_the_number_and_is_then_told_when_there_is_more() {
        let rules = Rules::new(policy(vec![rule(1, Some("3/m"))]));
        for uid in [1, 100] {
            (0..3).for_each(|_| ask(&rules, uid).unwrap());
            match ask(&rules, uid) {
                Err(SignError::RateLimited { retry_after }) => {
                    assert!(retry_after > Duration::from_secs(10), "{retry_after:?}");
                    assert!(retry_after <= Duration::from_secs(20), "{retry_after:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_rule_without_a_rate_has_none() {
        let rules = Rules::new(policy(vec![rule(1, None)]));
        (0..1000).for_each(|_| ask(&rules, 1).unwrap());
    }

    /// No later rule helps out, whatever it allows.
    #[test]
    fn of_several_rules_the_first_that_allows_counts() {
        let rules = Rules::new(policy(vec![rule(1, Some("1/m")), rule(2, None)]));
        ask(&rules, 100).unwrap();
        assert!(ask(&rules, 100).is_err());
        (0..10).for_each(|_| ask(&rules, 2).unwrap());
    }

    #[test]
    fn a_reload_resets_only_rules_that_changed() {
        let before = Rules::new(policy(vec![rule(1, Some("1/m")), rule(2, Some("1/m"))]));
        for uid in [1, 2] {
            ask(&before, uid).unwrap();
        }
        let after = Rules::following(policy(vec![rule(3, None), rule(2, Some("1/m")), rule(1, Some("2/m"))]), &before);
        assert!(ask(&after, 2).is_err(), "the same rule at another place");
        (0..2).for_each(|_| ask(&after, 1).unwrap());
        assert!(ask(&after, 1).is_err());
    }
}
