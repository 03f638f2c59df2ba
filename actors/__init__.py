"""The three roles: rollout, reward, learner; and the policy that rollout and learner share."""
