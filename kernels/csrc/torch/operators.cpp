// The kernels as torch operators, on torch's stable ABI: one build serves torch 2.11 and later.
//
// Compiled for each library: KERNELS_CPU, KERNELS_EMULATOR (the CUDA kernels on the host), or neither for CUDA.
#include "activation.h"
#include "attention.h"
#include "cross_entropy.h"
#include "embedding.h"
#include "norm.h"
#include "optimizer.h"

namespace kernels {

STABLE_TORCH_LIBRARY(KERNELS_NAMESPACE, library) {
  library.def(kCrossEntropyForward);
  library.def(kCrossEntropyBackward);
  library.def(kNormForward);
  library.def(kNormBackward);
  library.def(kDropoutAdd);
  library.def(kEmbeddingForward);
  library.def(kEmbeddingBackward);
  library.def(kEmbeddingRuns);
#if defined(KERNELS_CPU)
  library.def(kZero);
#endif
  library.def(kSquaredNorm);
  library.def(kAdamW);
  library.def(kLambMoments);
  library.def(kLambStep);
  library.def(kAttentionForward);
  library.def(kAttentionBackward);
  library.def(kActivationForward);
  library.def(kActivationBackward);
}

STABLE_TORCH_LIBRARY_IMPL(KERNELS_NAMESPACE, KERNELS_KEY, library) {
  library.impl("cross_entropy_forward", TORCH_BOX(&cross_entropy_forward));
  library.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
  library.impl("norm_forward", TORCH_BOX(&norm_forward));
  library.impl("norm_backward", TORCH_BOX(&norm_backward));
  library.impl("dropout_add", TORCH_BOX(&dropout_add));
  library.impl("embedding_forward", TORCH_BOX(&embedding_forward));
  library.impl("embedding_backward", TORCH_BOX(&embedding_backward));
  library.impl("embedding_runs", TORCH_BOX(&embedding_runs));
#if defined(KERNELS_CPU)
  library.impl("zero", TORCH_BOX(&zero));
#endif
  library.impl("squared_norm", TORCH_BOX(&squared_norm));
  library.impl("adamw", TORCH_BOX(&adamw));
  library.impl("lamb_moments", TORCH_BOX(&lamb_moments));
  library.impl("lamb_step", TORCH_BOX(&lamb_step));
  library.impl("attention_forward", TORCH_BOX(&attention_forward));
  library.impl("attention_backward", TORCH_BOX(&attention_backward));
  library.impl("activation_forward", TORCH_BOX(&activation_forward));
  library.impl("activation_backward", TORCH_BOX(&activation_backward));
}

}  // namespace kernels
