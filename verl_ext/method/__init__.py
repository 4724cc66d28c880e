"""The method, in pure torch: no Ray, no verl, no configuration objects.

Shapes: `B` sequences, `T` response tokens (right-padded). Log-probs are in nats, and a name says who
computed them: `rollout_logprobs_BT` by the sampler, `teacher_logprobs_BT` by the teacher,
`logprobs_BT` by the policy that is being trained.
"""
