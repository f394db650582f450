// Published models, as the tests of the plan use them.
#pragma once

#include "model/device_facts.h"
#include "model/model_shape.h"

namespace longhaul {

inline ModelShape SmolLm2Shape() {
  ModelShape s;
  s.family = "llama";
  s.layers = 30;
  s.hidden = 576;
  s.intermediate = 1536;
  s.heads = 9;
  s.kv_heads = 3;
  s.head_dim = 64;
  s.vocab = 49152;
  s.max_position_embeddings = 8192;
  s.tied_embeddings = true;
  s.rope.theta = 100000;
  return s;
}

inline ModelShape Llama8bShape() {
  ModelShape s;
  s.family = "llama";
  s.layers = 32;
  s.hidden = 4096;
  s.intermediate = 14336;
  s.heads = 32;
  s.kv_heads = 8;
  s.head_dim = 128;
  s.vocab = 128256;
  s.max_position_embeddings = 131072;
  s.rope = {500000.0, RopeScaling::kLlama3, 8.0, 1.0, 4.0, 8192};
  return s;
}

inline ModelShape Llama70bShape() {
  ModelShape s = Llama8bShape();
  s.layers = 80;
  s.hidden = 8192;
  s.intermediate = 28672;
  s.heads = 64;
  return s;
}

inline DeviceFacts SmallCpu() {
  DeviceFacts facts;
  facts.device_class = "cpu-avx2-2t";
  facts.host_bytes = int64_t{16} << 30;
  facts.disk_bytes = int64_t{100} << 30;
  facts.cpu_threads = 2;
  facts.isa = "avx2";
  facts.gemm_flops = 150e9;
  return facts;
}

inline DeviceFacts Bf16Cpu() {
  DeviceFacts facts = SmallCpu();
  facts.device_class = "cpu-avx512_bf16-2t";
  facts.isa = "avx512_bf16";
  facts.has_bf16 = true;
  facts.gemm_flops = 430e9;
  return facts;
}

}  // namespace longhaul
